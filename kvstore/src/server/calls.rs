//! The service for calls that come over the socket of shared memory.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use kelvin_proto::{
    Refusal,
    kv::v1::{self, kv_service_server::KvService},
    refusal_of,
};
use prost::Message;
use tonic::Request;

use super::service::Service;
use crate::{
    store::Tenant,
    transport::{Answers, answer_frame, for_each_verb},
};

macro_rules! answers {
    ($($method:ident: $request:ident => $response:ident, $name:literal;)*) => {
        impl Answers for Service {
            fn answer(
                self: Arc<Self>,
                tenant: Arc<Tenant>,
                verb: &[u8],
                message: Bytes,
            ) -> BoxFuture<'static, Result<Vec<u8>, Refusal>> {
                match verb {
                    $(verb if verb == $name.as_bytes() => Box::pin(async move {
                        let message = v1::$request::decode(message)
                            .map_err(|error| Refusal::invalid(format!("a request of {}: {error}", $name)))?;
                        let mut request = Request::new(message);
                        request.extensions_mut().insert(tenant);
                        let answer = self.$method(request).await.map_err(|status| refusal_of(&status))?;
                        answer_frame(answer.get_ref())
                    }),)*
                    other => {
                        let text = format!("no verb `{}` is answered here", String::from_utf8_lossy(other));
                        Box::pin(std::future::ready(Err(Refusal::invalid(text))))
                    }
                }
            }
        }
    };
}
for_each_verb!(answers);
