//! The words of `--isolation`, for completions; whether a word is right is told by the request.

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};

/// Takes any word, and offers the right ones.
#[derive(Debug, Clone)]
pub struct IsolationWord;

impl TypedValueParser for IsolationWord {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(["process", "hyperv", "default"].into_iter().map(PossibleValue::new)))
    }
}
