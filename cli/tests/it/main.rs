//! The binary from outside, and the rules of the house.

mod cluster;
mod harness;
mod heap;
mod help;
mod licences;
mod metrics;
mod page;
mod store;
mod tidy;
mod top;
mod torture;
mod traces;
mod up;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test, in an environment without Kelvin's variables.
fn kelvin(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kelvin"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            ["KELVIN_", "OTEL_", "GLIBC_TUNABLES"].iter().any(|ours| name.starts_with(ours))
                || name == "COLUMNS"
        }) {
            command.env_remove(name);
        }
    }
    command
}

fn run(args: &[&str]) -> (Output, String, String) {
    let output = kelvin(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output, stdout, stderr)
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What cargo knows of the workspace, without asking a registry: of this platform, since the crates of others were
/// never fetched.
fn metadata(dependencies: bool) -> cargo_metadata::Metadata {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo_metadata::MetadataCommand::new();
    let options = ["--offline", "--filter-platform", &platform];
    command.current_dir(root()).other_options(options.map(str::to_owned));
    if !dependencies {
        command.no_deps();
    }
    command.exec().unwrap()
}
