//! One part of a name pattern: characters, and `*` for any run of them. Pure.
//!
//! In: text as the operator wrote it. Out: a [`Pattern`] per part. Promise: what is quoted
//! stands for itself; matching takes time in the order of pattern times name.

use pg::sql::quote_ident;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Character(char),
    AnyRun,
}

/// A pattern for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

impl Pattern {
    /// The parts of `text`, divided by dots outside quotes.
    pub(super) fn parse(text: &str) -> Result<Vec<Self>, &'static str> {
        let mut parts = Vec::new();
        let mut part = Vec::new();
        let mut quoted = false;
        let mut characters = text.trim().chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '"' if quoted && characters.peek() == Some(&'"') => {
                    characters.next();
                    part.push(Token::Character('"'));
                }
                '"' => quoted = !quoted,
                _ if quoted => part.push(Token::Character(character)),
                '.' => parts.push(Self::of(std::mem::take(&mut part))?),
                '*' => part.push(Token::AnyRun),
                // as the server folds names in a multibyte encoding: ASCII alone
                _ => part.push(Token::Character(character.to_ascii_lowercase())),
            }
        }
        if quoted {
            return Err("its double quote is not closed");
        }
        parts.push(Self::of(part)?);
        Ok(parts)
    }

    fn of(tokens: Vec<Token>) -> Result<Self, &'static str> {
        if tokens.is_empty() { Err("a part of the name is empty") } else { Ok(Self(tokens)) }
    }

    /// The one name that fits, if there is no wildcard.
    pub(super) fn literal(&self) -> Option<String> {
        self.0
            .iter()
            .map(|token| match token {
                Token::Character(character) => Some(*character),
                Token::AnyRun => None,
            })
            .collect()
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // where to go on after the last `*`: its token, and the characters it has taken
        let mut last_run: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.0.get(token) {
                Some(Token::AnyRun) => {
                    last_run = Some((token, at));
                    token += 1;
                }
                Some(Token::Character(character)) if *character == name[at] => {
                    token += 1;
                    at += 1;
                }
                _ => {
                    let Some((run, taken)) = last_run else { return false };
                    last_run = Some((run, taken + 1));
                    token = run + 1;
                    at = taken + 1;
                }
            }
        }
        self.0[token..].iter().all(|rest| *rest == Token::AnyRun)
    }
}

impl fmt::Display for Pattern {
    /// Quoted where it is literal; runs of wildcards stand outside the quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut literal = String::new();
        for token in &self.0 {
            match token {
                Token::Character(character) => literal.push(*character),
                Token::AnyRun => {
                    if !literal.is_empty() {
                        f.write_str(&quote_ident(&literal))?;
                        literal.clear();
                    }
                    f.write_str("*")?;
                }
            }
        }
        if literal.is_empty() { Ok(()) } else { f.write_str(&quote_ident(&literal)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Pattern {
        Pattern::parse(text).unwrap().remove(0)
    }

    /// Straight from the definition, for comparison.
    fn by_definition(pattern: &[Token], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((Token::Character(character), rest)) => {
                name.first() == Some(character) && by_definition(rest, &name[1..])
            }
            Some((Token::AnyRun, rest)) => {
                (0..=name.len()).any(|taken| by_definition(rest, &name[taken..]))
            }
        }
    }

    #[test]
    fn a_star_takes_any_run_the_empty_one_too() {
        assert!(one("a*").matches("a") && one("a*").matches("abc"));
        assert!(one("*a*b").matches("xaxbxb") && !one("*a*b").matches("xaxbx"));
        assert!(!one("a").matches("") && one("*").matches(""));
    }

    #[test]
    fn a_pattern_prints_as_it_is_read() {
        for text in ["\"a\"*", "*\"b\"\"\"", "\"a*\""] {
            assert_eq!(one(text).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_its_definition(text in "[ab*]{1,8}", name in "[ab]{0,10}") {
            let pattern = one(&text);
            let name_characters: Vec<char> = name.chars().collect();
            prop_assert_eq!(pattern.matches(&name), by_definition(&pattern.0, &name_characters));
        }

        #[test]
        fn printing_and_reading_give_the_same_pattern(text in "[aB*\" .]{1,8}") {
            if let Ok(parts) = Pattern::parse(&text) {
                for part in parts {
                    prop_assert_eq!(one(&part.to_string()), part);
                }
            }
        }
    }
}
