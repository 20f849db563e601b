//! A worker as a process: engine, namespace, gRPC server, graceful stop.
//!
//! # Overview
//! Start: check the settings, take the port, make the engine on its thread, open the namespace (again and again
//! while the store is not there yet; a fingerprint mismatch is final), serve. Stop: refuse new requests, let
//! those in work go on for the grace period, cut the rest with an error, end the session so that every
//! lease returns at once.

use std::{
    future::Future,
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use kelvin_kvstore::{Client, ClientOptions, Namespace};
use kelvin_proto::{DESCRIPTORS, NamespaceSpec, worker::v1::worker_service_server::WorkerServiceServer};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    Error, Listening, Role, WorkerConfig,
    decode::{self, DecodeWorker, scheduler::Scheduler},
    engine::owner::{self, EngineCalls, Started},
    load::LoadMeter,
    prefill::PrefillWorker,
    service::{Service, Side},
};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// Time for what is left once every request has ended.
const WIND_UP: Duration = Duration::from_secs(3);

/// Runs a worker until `shutdown`, then drains it. `ready` is called once it serves.
pub async fn serve(
    config: WorkerConfig,
    ready: impl FnOnce(Listening) + Send,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let options = config.engine_options()?;
    let listen = |source| Error::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let grpc = listener.local_addr().map_err(listen)?;

    let load = Arc::new(LoadMeter::new(options.slots));
    let (calls, serve_calls) = EngineCalls::new();
    let (commands, receiver) = decode::commands();
    let (role, chunk_tokens) = (config.role, config.chunk_tokens);
    let engine_load = load.clone();
    let body = move |engine| match role {
        Role::Prefill => serve_calls(engine),
        Role::Decode => Scheduler::new(engine, chunk_tokens, engine_load).run(receiver),
    };
    let starting = owner::spawn(&config.name, config.model.clone(), options, body);
    let Some(started) = until(&shutdown, starting).await else { return Ok(()) };
    let Started { mut spec, texts, prefill_tokens_per_second, mut exited } = started?;
    if let Some(name) = &config.model_name {
        spec.model_name = name.clone();
    }
    load.update(|load| load.prefill_tokens_per_second = prefill_tokens_per_second);

    let Some(namespace) = until(&shutdown, open_namespace(&config, spec.namespace())).await else {
        return Ok(());
    };
    let namespace = namespace?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let side = match role {
        Role::Prefill => {
            let (worker, driver) = PrefillWorker::new(
                calls,
                spec.clone(),
                namespace.clone(),
                chunk_tokens,
                config.queue_max,
                load.clone(),
            );
            tasks.spawn(driver.run(stop.clone()));
            Side::Prefill(worker)
        }
        Role::Decode => {
            let (slots, queue_max) = (options.slots, config.queue_max);
            Side::Decode(DecodeWorker::new(commands, namespace.clone(), slots, queue_max, tasks.clone()))
        }
    };
    let incarnation = RandomState::new().build_hasher().finish();
    let service = Service::new(side, spec, texts, config.name.clone(), chunk_tokens, incarnation, load);

    let closing = CancellationToken::new();
    let mut server = tokio::spawn(run_server(listener, service.clone(), closing.clone()));
    tracing::info!(name = config.name, role = role.name(), %grpc, "ready");
    ready(Listening { grpc });

    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        _ = &mut exited => Err(Error::EngineGone),
        ended = &mut server => return ended.unwrap_or(Err(Error::EngineGone)),
    };
    service.drain();
    closing.cancel();
    if result.is_ok() && tokio::time::timeout(config.grace, service.drained()).await.is_err() {
        tracing::warn!(grace = ?config.grace, "requests are cut at the end of the grace period");
    }
    stop.cancel();
    service.stop().await;
    drop(service);
    let wind_up = async {
        let served = (&mut server).await;
        tasks.close();
        tasks.wait().await;
        served
    };
    if tokio::time::timeout(WIND_UP, wind_up).await.is_err() {
        tracing::warn!("clients or the store hold on to connections: closing anyway");
        server.abort();
    }
    namespace.close().await;
    result
}

async fn until<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = shutdown.cancelled() => None,
        done = work => Some(done),
    }
}

async fn run_server(
    listener: TcpListener,
    service: Service,
    closing: CancellationToken,
) -> Result<(), Error> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<WorkerServiceServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::Config(format!("gRPC reflection: {error}")))?;
    let drained = async move {
        closing.cancelled().await;
        health_reporter.set_not_serving::<WorkerServiceServer<Service>>().await;
    };
    Server::builder()
        .add_service(health)
        .add_service(reflection)
        .add_service(WorkerServiceServer::new(service))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), drained)
        .await?;
    Ok(())
}

/// Opens the namespace; waits for a store that is not there yet.
async fn open_namespace(config: &WorkerConfig, spec: NamespaceSpec) -> Result<Namespace, Error> {
    let mut pause = RETRY_FIRST;
    loop {
        let options = ClientOptions {
            token: config.token.clone(),
            ..ClientOptions::new(config.store.clone(), config.name.clone())
        };
        let opened = async { Client::connect(options).await?.open(spec.clone()).await }.await;
        match opened {
            Ok(namespace) => return Ok(namespace),
            Err(error) if error.is_retryable() => {
                tracing::info!(store = config.store, %error, "the store is not there yet");
            }
            Err(error) => {
                return Err(Error::Store { endpoint: config.store.clone(), message: error.to_string() });
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}
