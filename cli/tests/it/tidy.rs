//! The rules of the house that a program can check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::DependencyKind;

use super::{metadata, root};

/// A crate, and the crates of this workspace it may be built on. A new arrow is a change of design: it is
/// drawn here first.
const ARROWS: [(&str, &[&str]); 11] = [
    ("proto", &[]),
    ("kernels", &[]),
    ("tiering", &["kernels"]),
    ("kvstore", &["tiering", "kernels", "proto"]),
    ("workers", &["kvstore", "proto"]),
    ("connectors", &["kvstore", "proto"]),
    ("capi", &["kvstore", "proto"]),
    ("router", &["kvstore", "proto"]),
    ("planner", &["proto", "kvstore"]),
    ("cli", &["proto", "kernels", "tiering", "kvstore", "workers", "router", "planner"]),
    ("bench", &["proto", "kernels", "tiering", "kvstore", "workers", "router", "planner"]),
];

/// Crates from outside that only some crates may use directly.
const RESERVED: [(&str, &[&str]); 9] = [
    ("cudarc", &["kernels"]),
    ("tokio-uring", &["tiering", "bench"]),
    ("io-uring", &["tiering"]),
    // The bench compares packs with a plain client.
    ("object_store", &["tiering", "bench"]),
    ("rocksdb", &["kvstore"]),
    ("tonic", &["proto", "kvstore", "workers", "router", "cli", "bench"]),
    ("anyhow", &["cli", "bench"]),
    ("pyo3", &["connectors"]),
    // The libraries know spans; that they are exported is the binary's affair.
    ("opentelemetry", &["cli"]),
];

/// Crates without any unsafe code.
const FORBID_UNSAFE: [&str; 3] = ["proto", "router", "planner"];

/// Top-level folders that are no crates.
const OTHER_FOLDERS: [&str; 2] = ["deploy", "docs"];

/// A file is one noun; a longer one holds a second.
const LINES_MAX: usize = 700;

/// What has no place in a finished tree. Put together at run time, so that this file passes its own test.
fn leftovers() -> Vec<String> {
    let words = [("to", "do!("), ("unimple", "mented!("), ("db", "g!("), ("FIX", "ME"), ("#[ig", "nore")];
    words.iter().map(|(head, tail)| format!("{head}{tail}")).collect()
}

/// Normal and build dependencies of every crate of the workspace, by folder. Tests may look anywhere.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata(false).packages;
    let folder = |name: &str| name.strip_prefix("kelvin-").map(str::to_owned);
    packages
        .iter()
        .map(|package| {
            let direct = package.dependencies.iter();
            let direct = direct.filter(|dependency| dependency.kind != DependencyKind::Development);
            let name =
                folder(&package.name).unwrap_or_else(|| panic!("{} is not named kelvin-*", package.name));
            (name, direct.map(|dependency| dependency.name.clone()).collect())
        })
        .collect()
}

#[test]
fn the_arrows_are_the_only_edges() {
    let arrows = BTreeMap::from(ARROWS);
    let mut wrong = Vec::new();
    for (source, targets) in dependencies() {
        let Some(allowed) = arrows.get(source.as_str()) else {
            wrong.push(format!("the crate {source} is not in the drawing"));
            continue;
        };
        for target in targets.iter().filter_map(|target| target.strip_prefix("kelvin-")) {
            if !allowed.contains(&target) {
                wrong.push(format!("{source} -> {target} is a new edge"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn reserved_crates_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (source, targets) in dependencies() {
        for (target, allowed) in RESERVED {
            if targets.contains(target) && !allowed.contains(&source.as_str()) {
                wrong.push(format!("{source} uses {target}, which only {allowed:?} may"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_package_is_named_after_its_folder() {
    for package in metadata(false).packages {
        let folder = package.manifest_path.parent().and_then(|path| path.file_name()).unwrap();
        assert_eq!(package.name.as_str(), format!("kelvin-{folder}"));
    }
}

#[test]
fn top_level_folders_are_the_known_ones() {
    let crates = ARROWS.map(|(name, _)| name);
    let unknown: Vec<_> = tracked()
        .iter()
        .filter_map(|path| path.components().nth(1).and(path.iter().next()?.to_str()))
        .filter(|folder| !folder.starts_with('.'))
        .filter(|folder| !crates.contains(folder) && !OTHER_FOLDERS.contains(folder))
        .map(str::to_owned)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn crates_that_promise_it_forbid_unsafe_code() {
    for name in FORBID_UNSAFE {
        let lib = fs::read_to_string(root().join(name).join("src/lib.rs")).unwrap();
        assert!(lib.contains("#![forbid(unsafe_code)]"), "{name}");
    }
}

#[test]
fn source_files_are_short_documented_and_finished() {
    let leftovers = leftovers();
    let mut wrong = Vec::new();
    let files: Vec<_> = tracked().into_iter().filter(|path| is_source(path)).collect();
    assert!(files.len() > 20, "only {} source files were found", files.len());
    for path in files {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let path = path.display();
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{path} has {lines} lines, at most {LINES_MAX}: look for its second noun"));
        }
        for leftover in leftovers.iter().filter(|leftover| text.contains(leftover.as_str())) {
            wrong.push(format!("{path} contains {leftover}"));
        }
        // Tests that moved out of a module belong to its head.
        let name = path.to_string();
        if name.ends_with(".rs") && !name.ends_with("/tests.rs") && !text.starts_with("//!") {
            wrong.push(format!("{path} does not begin by saying what it is (//!)"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn is_source(path: &Path) -> bool {
    let known = ["rs", "proto", "cu", "py", "sh", "toml"];
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| known.contains(&extension))
}

/// Every file below the root that is not hidden and not a build result, by its path from there.
fn tracked() -> Vec<PathBuf> {
    let root = root();
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let hidden = name
                .to_str()
                .is_none_or(|name| name.starts_with('.') || name == "target" || name == "__pycache__");
            if hidden {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path().strip_prefix(&root).unwrap().to_owned());
            }
        }
    }
    files
}
