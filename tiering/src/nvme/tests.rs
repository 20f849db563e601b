//! The device on a file of a temporary directory, with both engines.

use std::path::Path;

use super::*;
use crate::testing::{Faulty, block_on, check_device};

mod configuration;
mod device;
mod faults;

const MIB: u64 = 1 << 20;
const ENGINES: [NvmeEngine; 2] = [NvmeEngine::Auto, NvmeEngine::Pread];

fn options(dirs: &[&Path], engine: NvmeEngine) -> NvmeOptions {
    let paths = dirs.iter().map(|dir| NvmePath { path: dir.to_path_buf(), bytes: 4 * MIB }).collect();
    NvmeOptions { paths, engine, queue_depth: 8, extent_bytes: MIB, ..NvmeOptions::default() }
}
