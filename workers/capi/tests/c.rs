//! The header is that of the code, and a C program gets along with it and a store.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use kelvin_kvstore::server::{ServerConfig, serve};
use tokio_util::sync::CancellationToken;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_header_is_that_of_the_code() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::Builder::new().with_crate(root()).with_config(config).generate().unwrap().write(&mut made);
    let path = root().join("include/kelvin.h");
    if std::env::var_os("KELVIN_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read(&path).unwrap_or_default();
    assert!(there == made, "{} is not that of the code: test with KELVIN_UPDATE_HEADER=1", path.display());
}

/// Where cargo put the library: beside the tests.
fn library_folder() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(folder.join("libkelvin_c.so").exists(), "no libkelvin_c.so in {}", folder.display());
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_c_program_stores_finds_and_reads() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::new(16 << 20);
    config.socket = Some(folder.path().join("kv.sock"));
    config.data_listen = Some(([127, 0, 0, 1], 0).into());
    config.drain = Duration::from_secs(1);
    let stop = CancellationToken::new();
    let (ready, listening) = tokio::sync::oneshot::channel();
    let token = stop.clone();
    let server = tokio::spawn(async move {
        serve(config, |listening| drop(ready.send(listening)), token).await.unwrap();
    });
    let endpoint = format!("http://{}", listening.await.unwrap().grpc);

    let (program, libraries) = (folder.path().join("roundtrip"), library_folder());
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root().join("include"))
        .arg(root().join("tests/roundtrip.c"))
        .arg("-L")
        .arg(&libraries)
        .args(["-lkelvin_c", "-o"])
        .arg(&program)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    for transport in ["shm", "tcp"] {
        let mut command = Command::new(&program);
        command.args([&endpoint, transport]).env("LD_LIBRARY_PATH", &libraries);
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(ran.status.success(), "{transport}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    stop.cancel();
    server.await.unwrap();
}
