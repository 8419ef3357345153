//! Builds the contract in `proto/` without protoc, and keeps its descriptor set for reflection and Envoy.

use std::{env, fs, path::PathBuf, process::Command};

use prost::Message as _;
use protox::Compiler;

const PROTOS: [&str; 4] = [
    "yoink/v1/types.proto",
    "yoink/v1/inventory.proto",
    "yoink/v1/admin.proto",
    "yoink/v1/storefront.proto",
];

/// The commit of this build: YOINK_COMMIT, for builds without a repository, or what git reports.
fn commit() -> String {
    if let Ok(commit) = env::var("YOINK_COMMIT") {
        return commit;
    }
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    match git {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-env-changed=YOINK_COMMIT");
    // In a worktree `.git` is a file.
    if PathBuf::from(".git/logs/HEAD").is_file() {
        println!("cargo:rerun-if-changed=.git/logs/HEAD");
    }
    println!("cargo:rustc-env=YOINK_COMMIT={}", commit());
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    // No file imports these, but Envoy needs them to decode error bodies.
    compiler.open_file("google/rpc/error_details.proto")?;
    compiler.open_file("google/rpc/status.proto")?;
    for proto in PROTOS {
        compiler.open_file(proto)?;
    }
    // protox keeps the google.api.http options here; encoding through prost would drop them.
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(out.join("yoink.binpb"), &encoded)?;

    let set = prost_types::FileDescriptorSet::decode(encoded.as_slice())?;
    tonic_prost_build::configure()
        .include_file("pb.rs")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(set)?;
    Ok(())
}
