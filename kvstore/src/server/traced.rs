//! Calls over gRPC as parts of their request's trace: a layer around the service.

use std::task::{Context, Poll};

use kelvin_proto::trace;
use tonic::codegen::http::Request;
use tower::{Layer, Service};
use tracing::{Instrument, Span, instrument::Instrumented};

use crate::span;

/// The layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traced;

/// A service whose calls have spans.
#[derive(Debug, Clone)]
pub(super) struct TracedService<S>(S);

impl<S> Layer<S> for Traced {
    type Service = TracedService<S>;

    fn layer(&self, service: S) -> Self::Service {
        TracedService(service)
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for TracedService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = match trace::of_headers(request.headers()) {
            None => Span::none(),
            parent => {
                let verb = request.uri().path().rsplit('/').next().unwrap_or_default();
                span::of_call(verb, "grpc", parent)
            }
        };
        self.0.call(request).instrument(span)
    }
}
