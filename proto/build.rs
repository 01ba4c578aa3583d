//! Compiles the .proto files with protox, so that no protoc is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["m1/worker/v1/worker.proto", "m1/dispatch/v1/dispatch.proto"];
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(files, ["proto"])?;
    let small = tonic_prost_build::configure().codec_path("crate::codec::SmallCodec").bytes(".");
    small.extern_path(".m1.worker.v1.TokenLogprobs", "crate::logprobs::TokenLogprobs").compile_fds(set)?;
    Ok(())
}
