use proptest::prelude::*;

use super::*;

/// Text and calls of pieces pushed one by one.
fn scan<'a>(pieces: impl IntoIterator<Item = &'a str>, single: bool) -> (String, Vec<(String, String)>) {
    let mut scanner = CallScanner::new(vec!["f".into(), "g".into()], single);
    let mut text = String::new();
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut take = |found: Found| {
        text.push_str(&found.text);
        for call in found.calls {
            match call.name {
                Some(name) => {
                    assert_eq!(call.index as usize, calls.len());
                    calls.push((name, call.arguments));
                }
                None => {
                    assert_eq!(call.index as usize, calls.len() - 1);
                    calls.last_mut().unwrap().1.push_str(&call.arguments);
                }
            }
        }
    };
    for piece in pieces {
        take(scanner.push(piece));
    }
    take(scanner.finish());
    assert_eq!(scanner.has_called(), !calls.is_empty());
    (text, calls)
}

#[track_caller]
fn check(whole: &str, text: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> =
        calls.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect();
    assert_eq!(scan([whole], false), (text.to_owned(), calls.clone()), "whole");
    let chars: Vec<String> = whole.chars().map(String::from).collect();
    assert_eq!(scan(chars.iter().map(String::as_str), false), (text.to_owned(), calls), "by characters");
}

#[test]
fn calls_are_found_in_text() {
    check("no call < at all { }\n", "no call < at all { }\n", &[]);
    check(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"\"}}\n</tool_call>",
        "",
        &[("f", "{\"a\": \"}\\\"\"}")],
    );
    check(
        "Sure.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{\"x\":[1]}}</tool_call>\n",
        "Sure.",
        &[("f", "{}"), ("g", "{\"x\":[1]}")],
    );
}

#[test]
fn calls_come_in_other_orders_and_bare() {
    check("<tool_call>{\"arguments\": {\"a\":1}, \"name\": \"g\"}</tool_call>", "", &[("g", "{\"a\":1}")]);
    check("<tool_call>{\"name\": \"g\", \"arguments\": \"{}\"}</tool_call>", "", &[("g", "{}")]);
    check(" {\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", &[("f", "{\"a\":1}")]);
    check("{\"name\": \"h\", \"arguments\": {}}", "{\"name\": \"h\", \"arguments\": {}}", &[]);
    check("{\"answer\": 7}", "{\"answer\": 7}", &[]);
}

#[test]
fn what_is_no_call_stays_text() {
    let unknown = "<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>";
    check(unknown, unknown, &[]);
    check("a <tool_call>nonsense", "a <tool_call>nonsense", &[]);
    check("a<tool_", "a<tool_", &[]);
    let long = format!("<tool_call>{}", "x".repeat(2000));
    check(&long, &long, &[]);
}

#[test]
fn arguments_stream_and_a_cut_call_keeps_what_it_has() {
    let mut scanner = CallScanner::new(vec!["f".into()], false);
    let found = scanner.push("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a");
    assert_eq!(found.calls, [CallDelta { index: 0, name: Some("f".into()), arguments: "{\"a".into() }]);
    let found = scanner.push("\": 1");
    assert_eq!(found.calls, [CallDelta { index: 0, name: None, arguments: "\": 1".into() }]);
    assert_eq!(scanner.finish(), Found::default());
    assert!(scanner.has_called());
}

#[test]
fn a_single_call_is_the_last() {
    let call = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    let (text, calls) = scan([call, call], true);
    assert_eq!((text.as_str(), calls.len()), ("", 1));
}

proptest! {
    #[test]
    fn pieces_are_as_the_whole(parts in proptest::collection::vec(0usize..9, 0..12), cut in 1usize..7) {
        const PARTS: [&str; 9] = ["<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": ", "{\"a\": [\"x]\"]}",
            "}", "text é ", "\n", "{", "<"];
        let whole: String = parts.iter().map(|&part| PARTS[part]).collect();
        let chars: Vec<char> = whole.chars().collect();
        let pieces: Vec<String> = chars.chunks(cut).map(|piece| piece.iter().collect()).collect();
        prop_assert_eq!(scan([whole.as_str()], false), scan(pieces.iter().map(String::as_str), false));
    }
}
