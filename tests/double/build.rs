//! Compiles the peers' protocol with protox, so that no protoc is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(["vllm_engine.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(set)?;
    Ok(())
}
