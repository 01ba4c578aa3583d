//! Lets this crate's tests and examples find libtorch where it was linked, without LD_LIBRARY_PATH.
fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(path) = std::env::var_os("LIBTORCH") {
        let path = std::path::Path::new(&path).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", path.display());
    }
}
