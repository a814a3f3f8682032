//! Compiles `migration/v1` with protox (no protoc needed) and keeps the descriptor set for
//! gRPC reflection.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const JSON: &str = "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]";

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["operator_service", "worker_service", "migration", "task", "error"]
        .map(|name| format!("migration/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("migration_v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // A connection string holds a password: never in a Debug line.
        .skip_debug([".migration.v1.Endpoint"])
        // The spec is kept as JSON in the store and in the target; fields may be missing there.
        .type_attribute("migration.v1.MigrationSpec", JSON)
        .type_attribute("migration.v1.Filter", JSON)
        .type_attribute("migration.v1.Identity", JSON)
        .type_attribute("migration.v1.CopyOptions", JSON)
        .type_attribute("migration.v1.ReplayOptions", JSON)
        .type_attribute("migration.v1.CutoverOptions", JSON)
        .type_attribute("migration.v1.CutoverStep", JSON)
        .type_attribute("migration.v1.LateWrite", JSON)
        .compile_fds(descriptors)?;
    Ok(())
}
