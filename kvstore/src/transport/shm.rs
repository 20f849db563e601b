//! The same-host transport: a tenant's memory file, handed over a Unix socket.
//!
//! # Protocol
//! The client connects, sends the 16-byte token of its handshake, and receives one byte with the memory
//! file's descriptor attached. From then on the socket carries calls ([`Calls`]), or both sides only hold it open.
//! When the client's end closes, however it died, the store ends its session and every lease of it at once.
//!
//! # Who may
//! The socket's file mode admits the store's own user only; the peer's credentials are checked as well; and
//! the token was given to an authenticated session.

use std::{
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use super::calls::Calls;
use kelvin_proto::kv::v1::SharedMemory;
use kelvin_tiering::Arena;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Time either side gives the other for the hand-over.
const HANDOVER: Duration = Duration::from_secs(5);

/// A mapped memory file, and the socket that keeps the session.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) arena: Arena,
    /// Closing it ends the session and lets the store use its slots again. So leases hold this value, too.
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    /// Only held.
    Idle {
        _socket: UnixStream,
    },
    Calls(Calls),
}

impl Attached {
    /// Calls over the socket, while it is open and if the store takes them there.
    pub(crate) fn calls(&self) -> Option<&Calls> {
        match &self.socket {
            Socket::Calls(calls) if !calls.is_closed() => Some(calls),
            _ => None,
        }
    }
}

/// Client side; blocks, within a runtime. `offer` is what the handshake said. `None` when the socket is out of reach; an
/// error once the token was shown: then the session is spent.
pub(crate) fn attach(offer: &SharedMemory) -> io::Result<Option<Attached>> {
    let Ok(mut socket) = UnixStream::connect(&offer.socket_path) else { return Ok(None) };
    socket.set_read_timeout(Some(HANDOVER))?;
    socket.write_all(&offer.token)?;
    let file = receive_file(socket.as_fd())?;
    let arena = Arena::map(file, offer.region_bytes).map_err(io::Error::other)?;
    let socket = match offer.takes_calls {
        true => Socket::Calls(Calls::start(socket, offer.takes_traces)?),
        false => Socket::Idle { _socket: socket },
    };
    Ok(Some(Attached { arena, socket }))
}

fn receive_file(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the store refused to hand over its memory",
        ));
    }
    let files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "the store sent no memory file");
    files.flatten().next().ok_or_else(missing)
}

#[cfg(feature = "server")]
pub(crate) use server::{SocketError, SocketFile, serve};

#[cfg(feature = "server")]
mod server {
    use std::{
        io::IoSlice,
        os::unix::fs::{FileTypeExt, PermissionsExt},
        path::{Path, PathBuf},
        sync::Arc,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use tokio::{
        io::AsyncReadExt,
        net::{UnixListener, UnixStream},
    };
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{
        store::{Store, Tenant},
        transport::calls::{Answers, answer_all},
    };

    /// Why the socket could not be made.
    #[derive(Debug, thiserror::Error)]
    #[error("{action} {}: {source}", path.display())]
    pub(crate) struct SocketError {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    }

    /// A bound socket; its file goes when this is dropped.
    pub(crate) struct SocketFile {
        listener: UnixListener,
        path: PathBuf,
    }

    impl SocketFile {
        /// Binds, in place of a socket that a dead store left behind.
        pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
            let fail = |action| move |source| SocketError { action, path: path.to_owned(), source };
            if let Ok(found) = std::fs::symlink_metadata(path) {
                let taken = |what| fail("bind socket")(io::Error::new(io::ErrorKind::AddrInUse, what));
                if !found.file_type().is_socket() {
                    return Err(taken("there is something that is no socket: give another path"));
                }
                match std::os::unix::net::UnixStream::connect(path) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    _ => return Err(taken("another store listens there")),
                }
                std::fs::remove_file(path).map_err(fail("remove stale socket"))?;
            }
            let listener = UnixListener::bind(path).map_err(fail("bind socket"))?;
            let socket = Self { listener, path: path.to_owned() };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .map_err(fail("restrict socket"))?;
            Ok(socket)
        }
    }

    impl Drop for SocketFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Hands out memory, and answers calls, until told to stop.
    pub(crate) async fn serve(
        socket: SocketFile,
        store: Arc<Store>,
        answers: Arc<impl Answers>,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = socket.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (store, answers, stop) = (store.clone(), answers.clone(), stop.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            result = attend(stream, &store, answers) => match result {
                                Ok(()) => {}
                                // It left while an answer was on its way to it.
                                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                                    tracing::debug!(%error, "a shared-memory client is gone");
                                }
                                Err(error) => tracing::warn!(%error, "shared-memory client cut off"),
                            },
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, mostly: without a pause this would spin.
                    tracing::warn!(%error, "accept on the shared-memory socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// One client, from its token until its end closes.
    async fn attend(mut stream: UnixStream, store: &Store, answers: Arc<impl Answers>) -> io::Result<()> {
        let peer = stream.peer_cred()?.uid();
        let own = rustix::process::geteuid().as_raw();
        if peer != own && peer != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("peer has user id {peer}")));
        }
        let mut token = [0; 16];
        tokio::time::timeout(HANDOVER, stream.read_exact(&mut token)).await??;
        let found: Option<(Arc<Tenant>, _)> =
            store.tenants().find_map(|tenant| Some((tenant.clone(), tenant.map_memory(&token)?)));
        let Some((tenant, session)) = found else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "unknown token"));
        };
        let _mapped = Mapped { tenant: tenant.clone(), session };
        send_file(&stream, tenant.pool().arena().file()).await?;
        // Any end of it ends the session.
        match answer_all(stream, tenant, answers).await {
            // The usual end of a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            ended => ended,
        }
    }

    /// A session whose process may have mapped the pool; dropped when its socket is closed, or cannot be.
    struct Mapped {
        tenant: Arc<Tenant>,
        session: u64,
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            self.tenant.unmap_memory(self.session);
        }
    }

    async fn send_file(stream: &UnixStream, file: BorrowedFd<'_>) -> io::Result<()> {
        stream
            .async_io(tokio::io::Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let files = [file];
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)), "room for one descriptor");
                let sent =
                    rustix::net::sendmsg(stream, &[IoSlice::new(&[1])], &mut ancillary, SendFlags::NOSIGNAL)?;
                debug_assert_eq!(sent, 1, "one byte is sent whole");
                Ok(())
            })
            .await
    }
}
