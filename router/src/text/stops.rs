//! Stop strings in text that arrives in pieces.

/// Finds the first stop string, and holds back no more than what may begin one.
#[derive(Debug)]
pub(super) struct StopScanner {
    stops: Vec<String>,
    held: String,
}

impl StopScanner {
    /// Looks for any of `stops`, none of them empty.
    pub(super) fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops, held: String::new() }
    }

    /// Text that can go out now, and whether a stop string was found right behind it. Nothing may be
    /// pushed after a stop.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        if let Some(start) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let mut out = std::mem::take(&mut self.held);
            out.truncate(start);
            return (out, true);
        }
        let keep = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let behind = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, behind), false)
    }

    /// What was held back, when no more comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that begins `stop` without being all of it.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&bytes| text.as_bytes().ends_with(&stop.as_bytes()[..bytes])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], stopped: bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut got = Vec::new();
        let mut found = false;
        for piece in pieces {
            let (text, stop) = scanner.push(piece);
            got.push(text);
            found = stop;
            if stop {
                break;
            }
        }
        if !found {
            got.push(scanner.finish());
        }
        assert_eq!(got, expected);
        assert_eq!(found, stopped);
    }

    #[test]
    fn a_stop_string_over_several_pieces_never_shows() {
        check(&["END"], &["ab", "E", "N", "D", "c"], &["ab", "", "", ""], true);
        check(&["END"], &["abENDcd"], &["ab"], true);
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        check(&["END"], &["aE", "x"], &["a", "Ex", ""], false);
        check(&["END"], &["aEN"], &["a", "EN"], false);
        check(&["aab"], &["aa", "ab"], &["", "a"], true);
    }

    #[test]
    fn the_earliest_of_several_wins() {
        check(&["yy", "x"], &["axyy"], &["a"], true);
        check(&["\n\n", "é!"], &["1\n", "2é", "!"], &["1", "\n2", ""], true);
    }

    proptest! {
        #[test]
        fn pieces_stop_where_the_whole_does(text in "[abé]{0,24}", stop in "[abé]{1,4}", cut in 1usize..5) {
            let mut scanner = StopScanner::new(vec![stop.clone()]);
            let mut out = String::new();
            let mut stopped = false;
            let characters: Vec<char> = text.chars().collect();
            for piece in characters.chunks(cut) {
                let (text, found) = scanner.push(&piece.iter().collect::<String>());
                out.push_str(&text);
                if found { stopped = true; break; }
            }
            if !stopped { out.push_str(&scanner.finish()); }
            let expected = text.split_once(stop.as_str()).map_or(text.as_str(), |(before, _)| before);
            prop_assert_eq!(out.as_str(), expected);
            prop_assert_eq!(stopped, text.contains(stop.as_str()));
        }
    }
}
