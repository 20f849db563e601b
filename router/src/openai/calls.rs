//! Calls of tools in what a model writes, found while it is written.
//!
//! # States
//! ```text
//!            "<tool_call>"             name, "arguments":           arguments closed
//!  Text ──────────────────────► Head ─────────────────────► Arguments ──────────────► Tail
//!   ▲ ▲                          │ not a call: given out as text                        │
//!   │ └──────────────────────────┘                                                      │
//!   └───────────────────────────────────────────────────────────── "</tool_call>" ──────┘
//! ```
//! An answer that is one JSON object and nothing else counts as a call as well, if it has a tool's name and
//! arguments: some models write calls so. It is known only at its end, so it comes in one piece.
//!
//! # Invariants
//! - Text that is not a call comes out unchanged, but for white space next to calls.
//! - A name comes out only if it is that of a tool of the request.
//! - Arguments are given out as they are written: they are JSON as far as the model wrote JSON.

use serde_json::Value;

use super::tools::{CLOSE, OPEN};

/// Most bytes before a call's arguments: more is no call.
const HEAD_BYTES_MAX: usize = 1024;

/// What came to be known of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallDelta {
    /// Which call of the answer.
    pub(super) index: u32,
    /// Set in its first piece.
    pub(super) name: Option<String>,
    /// The next piece of its arguments.
    pub(super) arguments: String,
}

/// Text and calls that can go out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) calls: Vec<CallDelta>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Text,
    /// Behind `<tool_call>`.
    Head,
    /// In the arguments, with the brackets open and whether in a string, behind a backslash.
    Arguments {
        open: u32,
        quoted: bool,
        escaped: bool,
    },
    Tail,
}

/// Finds calls in text that comes in pieces.
#[derive(Debug)]
pub(super) struct CallScanner {
    names: Vec<String>,
    state: State,
    /// What was read and not given out.
    held: String,
    /// White space before `<tool_call>`, given out should no call follow.
    gap: String,
    calls: u32,
    /// Whether text that is no white space came.
    spoke: bool,
    /// The whole answer may be one JSON object.
    bare: bool,
    single: bool,
}

impl CallScanner {
    /// For calls of these tools; with `single` the first call is the last.
    pub(super) fn new(names: Vec<String>, single: bool) -> Self {
        Self {
            names,
            state: State::Text,
            held: String::new(),
            gap: String::new(),
            calls: 0,
            spoke: false,
            bare: true,
            single,
        }
    }

    /// Whether a call was found.
    pub(super) fn has_called(&self) -> bool {
        self.calls > 0
    }

    /// Takes the next text.
    pub(super) fn push(&mut self, text: &str) -> Found {
        self.held.push_str(text);
        let mut found = Found::default();
        while self.step(&mut found) {}
        found
    }

    /// What is left when no more comes.
    pub(super) fn finish(&mut self) -> Found {
        let mut found = Found::default();
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Text => match self.bare_call(&held) {
                Some(call) => found.calls.push(call),
                None if self.calls > 0 => self.say(held.trim_end(), &mut found),
                None => self.say(&held, &mut found),
            },
            State::Head => match self.whole_call(&held) {
                Some(call) => found.calls.push(call),
                None => self.say_uncalled(&held, &mut found),
            },
            State::Arguments { .. } | State::Tail => {}
        }
        found
    }

    /// Goes on by one state; false when more text is needed.
    fn step(&mut self, found: &mut Found) -> bool {
        match self.state {
            State::Text => self.text(found),
            State::Head => self.head(found),
            State::Arguments { open, quoted, escaped } => self.arguments(open, quoted, escaped, found),
            State::Tail => {
                let Some(end) = self.held.find(CLOSE) else {
                    // Nothing but brackets and white space belongs here.
                    let keep = begun(&self.held, CLOSE);
                    self.held.drain(..self.held.len() - keep);
                    return false;
                };
                self.held.drain(..end + CLOSE.len());
                self.state = State::Text;
                true
            }
        }
    }

    fn text(&mut self, found: &mut Found) -> bool {
        if self.bare && !self.spoke && self.calls == 0 {
            match self.held.trim_start().chars().next() {
                // Until its end it may be a call.
                None | Some('{') => return false,
                Some(_) => self.bare = false,
            }
        }
        if let Some(start) = self.held.find(OPEN) {
            let before: String = self.held.drain(..start).collect();
            self.held.drain(..OPEN.len());
            let words = before.trim_end();
            self.gap = before[words.len()..].to_owned();
            self.say(words, found);
            self.state = State::Head;
            return true;
        }
        // White space may stand before a call.
        let sure = self.held.len() - begun(&self.held, OPEN);
        let sure = self.held[..sure].trim_end().len();
        let out: String = self.held.drain(..sure).collect();
        self.say(&out, found);
        false
    }

    fn head(&mut self, found: &mut Found) -> bool {
        if let Some((name, arguments)) = head(&self.held)
            && self.is_tool(&name)
            && !self.is_over()
        {
            self.held.drain(..arguments);
            self.begin(name, found);
            self.state = State::Arguments { open: 0, quoted: false, escaped: false };
            return true;
        }
        let end = self.held.find(CLOSE);
        if end.is_none() && self.held.len() < HEAD_BYTES_MAX {
            return false;
        }
        if let Some(end) = end {
            let body: String = self.held.drain(..end + CLOSE.len()).collect();
            match self.whole_call(&body[..end]) {
                Some(call) => found.calls.push(call),
                None if self.is_over() => {}
                None => self.say_uncalled(&body, found),
            }
        } else {
            let body = std::mem::take(&mut self.held);
            self.say_uncalled(&body, found);
        }
        self.state = State::Text;
        true
    }

    fn arguments(&mut self, mut open: u32, mut quoted: bool, mut escaped: bool, found: &mut Found) -> bool {
        let mut end = None;
        for (at, char) in self.held.char_indices() {
            match char {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ if quoted => {}
                '{' | '[' => open += 1,
                '}' | ']' => open = open.saturating_sub(1),
                _ => {}
            }
            if open == 0 && !quoted {
                end = Some(at + char.len_utf8());
                break;
            }
        }
        let out: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        if !out.is_empty() {
            match found.calls.last_mut().filter(|call| call.index == self.calls - 1) {
                Some(call) => call.arguments.push_str(&out),
                None => found.calls.push(CallDelta { index: self.calls - 1, name: None, arguments: out }),
            }
        }
        self.state = match end {
            Some(_) => State::Tail,
            None => State::Arguments { open, quoted, escaped },
        };
        end.is_some()
    }

    fn say(&mut self, text: &str, found: &mut Found) {
        // Between and behind calls there is white space that nobody asked for.
        let text = if self.calls > 0 && !self.spoke { text.trim_start() } else { text };
        self.spoke |= !text.trim().is_empty();
        found.text.push_str(text);
    }

    /// Gives out what began as a call and is none.
    fn say_uncalled(&mut self, body: &str, found: &mut Found) {
        let text = format!("{}{OPEN}{body}", std::mem::take(&mut self.gap));
        self.say(&text, found);
    }

    fn is_tool(&self, name: &str) -> bool {
        self.names.iter().any(|tool| tool == name)
    }

    /// Whether no more calls may come.
    fn is_over(&self) -> bool {
        self.single && self.calls > 0
    }

    fn begin(&mut self, name: String, found: &mut Found) {
        found.calls.push(CallDelta { index: self.calls, name: Some(name), arguments: String::new() });
        self.calls += 1;
    }

    fn bare_call(&mut self, text: &str) -> Option<CallDelta> {
        (self.bare && !self.spoke && self.calls == 0).then(|| self.whole_call(text)).flatten()
    }

    /// A call that is there as a whole, with its keys in any order.
    fn whole_call(&mut self, text: &str) -> Option<CallDelta> {
        if self.is_over() {
            return None;
        }
        let value: Value = serde_json::from_str(text.trim()).ok()?;
        let name = value.get("name")?.as_str().filter(|name| self.is_tool(name))?.to_owned();
        let arguments = match value.get("arguments").or_else(|| value.get("parameters"))? {
            // Some models quote them.
            Value::String(quoted) => quoted.clone(),
            other => other.to_string(),
        };
        self.calls += 1;
        Some(CallDelta { index: self.calls - 1, name: Some(name), arguments })
    }
}

/// Name, and where the arguments begin, once both are there in this order and the arguments are an object.
fn head(text: &str) -> Option<(String, usize)> {
    let rest = text.trim_start().strip_prefix('{')?;
    let rest = rest.trim_start().strip_prefix("\"name\"")?.trim_start().strip_prefix(':')?;
    let rest = rest.trim_start().strip_prefix('"')?;
    let (name, rest) = rest.split_once('"')?;
    let rest = rest.trim_start().strip_prefix(',')?.trim_start().strip_prefix("\"arguments\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    rest.starts_with('{').then(|| (name.to_owned(), text.len() - rest.len()))
}

/// Bytes of the longest end of `text` that begins `mark` without being all of it.
fn begun(text: &str, mark: &str) -> usize {
    let longest = text.len().min(mark.len() - 1);
    (1..=longest).rev().find(|&bytes| text.as_bytes().ends_with(&mark.as_bytes()[..bytes])).unwrap_or(0)
}

#[cfg(test)]
mod tests;
