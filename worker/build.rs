//! Lets a binary with the executor on libtorch find that where it was linked, without LD_LIBRARY_PATH.
fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(path) = std::env::var_os("LIBTORCH").filter(|_| std::env::var_os("CARGO_FEATURE_TORCH").is_some()) {
        let path = std::path::Path::new(&path).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", path.display());
    }
}
