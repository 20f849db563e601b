//! What a worker is told at start.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{
    Error,
    engine::{EngineOptions, toy::ToyOptions},
};

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Fills the store with the blocks of prompts.
    Prefill,
    /// Imports blocks and generates tokens.
    Decode,
}

impl Role {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// Deterministic arithmetic, for tests.
    Toy(ToyOptions),
    /// A GGUF file, run by llama.cpp.
    Gguf(PathBuf),
}

/// Settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// What it does.
    pub role: Role,
    /// What it runs.
    pub model: ModelSource,
    /// Public name of the model; the model's own one when absent.
    pub model_name: Option<String>,
    /// Where it listens; loopback only, port 0 for any.
    pub listen: SocketAddr,
    /// The store's endpoint, `http://host:port`.
    pub store: String,
    /// Bearer token for the store, if it wants one.
    pub token: Option<String>,
    /// Its name in logs and in the store's list of sessions.
    pub name: String,
    /// Compute threads; never more than idle cores.
    pub threads: u32,
    /// Longest prompt plus completion, tokens; 0 for what the model was trained on, which is also the most.
    pub context_tokens: u32,
    /// Sequences at a time. A prefill worker uses one.
    pub slots: u32,
    /// Tokens that all sequences together can hold; absent for `slots` times the longest.
    pub cells: Option<u32>,
    /// Tokens a block.
    pub block_tokens: u32,
    /// Most prompt tokens of one step; a multiple of `block_tokens`.
    pub chunk_tokens: u32,
    /// Requests that may wait for a slot; one more is refused.
    pub queue_max: u32,
    /// How long requests in work may go on after the shutdown signal.
    pub grace: Duration,
}

impl WorkerConfig {
    /// Defaults for a role and a model: any loopback port, and the store's default port.
    pub fn new(role: Role, model: ModelSource) -> Self {
        Self {
            role,
            model,
            model_name: None,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            store: "http://127.0.0.1:7440".to_owned(),
            token: None,
            name: role.name().to_owned(),
            threads: 1,
            context_tokens: 2048,
            slots: 4,
            cells: None,
            block_tokens: 16,
            chunk_tokens: 128,
            queue_max: 64,
            grace: Duration::from_secs(10),
        }
    }

    /// Checks what does not need the model, and derives the engine's options. The error says what to change.
    pub fn engine_options(&self) -> Result<EngineOptions, Error> {
        let refuse = |message: String| Err(Error::Config(message));
        if !self.listen.ip().is_loopback() {
            return refuse(format!(
                "listen address {} is not a loopback address: this version has no TLS, use 127.0.0.1 or [::1]",
                self.listen
            ));
        }
        for (name, value, max) in [
            ("threads", self.threads, 1024),
            ("slots", self.slots, 255),
            ("block_tokens", self.block_tokens, 4096),
            ("chunk_tokens", self.chunk_tokens, 1 << 16),
        ] {
            if !(1..=max).contains(&value) {
                return refuse(format!("{name} must be 1 to {max}, not {value}"));
            }
        }
        if !self.chunk_tokens.is_multiple_of(self.block_tokens) {
            return refuse(format!(
                "chunk_tokens ({}) must be a multiple of block_tokens ({})",
                self.chunk_tokens, self.block_tokens
            ));
        }
        if (1..=self.block_tokens).contains(&self.context_tokens) {
            return refuse(format!("context_tokens must be more than block_tokens ({})", self.block_tokens));
        }
        if self.cells.is_some_and(|cells| cells <= self.block_tokens) {
            return refuse(format!("cells must be more than block_tokens ({})", self.block_tokens));
        }
        Ok(EngineOptions {
            block_tokens: self.block_tokens,
            chunk_tokens: self.chunk_tokens,
            slots: match self.role {
                Role::Prefill => 1,
                Role::Decode => self.slots,
            },
            context_tokens: self.context_tokens,
            cells: self.cells,
            threads: self.threads,
        })
    }
}

/// What a worker listens on once it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Its gRPC address.
    pub grpc: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_fit_say_what_to_change() {
        let check = |change: fn(&mut WorkerConfig), expected: &str| {
            let mut config = WorkerConfig::new(Role::Decode, ModelSource::Toy(ToyOptions::default()));
            change(&mut config);
            let error = config.engine_options().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(|c| c.listen = ([0, 0, 0, 0], 7450).into(), "not a loopback address");
        check(|c| c.slots = 0, "slots must be 1 to 255, not 0");
        check(|c| c.chunk_tokens = 100, "chunk_tokens (100) must be a multiple of block_tokens (16)");
        check(|c| c.threads = 0, "threads must be");
        check(|c| c.cells = Some(16), "cells must be more than");
        check(|c| c.context_tokens = 16, "context_tokens must be more than");
    }

    #[test]
    fn a_prefill_worker_has_one_slot() {
        let config = WorkerConfig::new(Role::Prefill, ModelSource::Toy(ToyOptions::default()));
        assert_eq!(config.engine_options().unwrap().slots, 1);
    }
}
