//! Every crate that is linked has a licence that `deny.toml` allows.

use std::collections::BTreeSet;

use super::{metadata, root};

/// The strings of the `allow` list in the `[licenses]` table.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let (_, table) = text.split_once("[licenses]").expect("deny.toml has a table of licences");
    let (_, list) = table.split_once("allow = [").expect("it has an allow list");
    let (list, _) = list.split_once(']').expect("the list ends");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether `deny.toml` lets this package alone have this licence.
fn is_exception(name: &str, licence: &str) -> bool {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    text.contains(&format!("{{ allow = [\"{licence}\"], crate = \"{name}\" }}"))
}

/// Whether an SPDX expression can be met with the allowed licences: all terms of one alternative. The old
/// form `A/B` means `A OR B`. Parentheses around alternatives bind as usual.
fn permitted(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let verdict = either(&mut rest, allowed);
    verdict && rest.is_empty()
}

fn either(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut verdict = both(words, allowed);
    while take(words, "OR") {
        verdict |= both(words, allowed);
    }
    verdict
}

fn both(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut verdict = one(words, allowed);
    while take(words, "AND") {
        verdict &= one(words, allowed);
    }
    verdict
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    if take(words, "(") {
        let verdict = either(words, allowed);
        return take(words, ")") && verdict;
    }
    let Some((licence, rest)) = words.split_first() else { return false };
    *words = rest;
    let mut licence = (*licence).to_owned();
    if take(words, "WITH")
        && let Some((exception, rest)) = words.split_first()
    {
        licence = format!("{licence} WITH {exception}");
        *words = rest;
    }
    allowed.contains(&licence)
}

fn take(words: &mut &[&str], word: &str) -> bool {
    match words.split_first() {
        Some((first, rest)) if *first == word => {
            *words = rest;
            true
        }
        _ => false,
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let allowed = allowed();
    assert!(allowed.contains("Apache-2.0"), "{allowed:?}");
    let wrong: Vec<_> = metadata(true)
        .packages
        .iter()
        .map(|package| (package.name.to_string(), package.license.clone().unwrap_or_default()))
        .filter(|(name, licence)| !permitted(licence, &allowed) && !is_exception(name, licence))
        .collect();
    assert!(wrong.is_empty(), "licences that deny.toml does not allow: {wrong:#?}");
}

#[test]
fn expressions() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "A WITH e".to_owned(), "Zlib".to_owned()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("MIT AND Zlib", true),
        ("(GPL-3.0 OR MIT) AND Zlib", true),
        ("(GPL-3.0 AND MIT) OR Zlib", true),
        ("MIT AND (GPL-3.0 OR BSD)", false),
        ("A WITH e", true),
        ("A", false),
        ("", false),
        ("MIT Zlib", false),
    ] {
        assert_eq!(permitted(expression, &allowed), expected, "{expression}");
    }
}
