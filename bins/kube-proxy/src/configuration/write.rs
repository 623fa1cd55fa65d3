//! The configuration as a file (`--write-config-to`), laid out as Kubernetes' own tools do.

use std::fmt::{self, Write};

use serde_json::Value;

use super::{API_VERSION, Configuration, KIND};
use crate::yaml;

impl Configuration {
    /// The configuration as an object of the API, without its header.
    pub(crate) fn to_value(&self) -> Value {
        // Numbers, texts and names of fields: there is nothing that could fail.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The file. All fields are there, in the order of the alphabet.
    pub(crate) fn to_yaml(&self) -> Result<String, fmt::Error> {
        let mut value = self.to_value();
        if let Value::Object(fields) = &mut value {
            fields.insert("apiVersion".to_owned(), API_VERSION.into());
            fields.insert("kind".to_owned(), KIND.into());
        }
        let mut text = String::new();
        block(&mut text, &value, 0)?;
        Ok(text)
    }
}

/// Writes the lines of a map or a list, each of which is indented, but for the first line of an item.
fn block(out: &mut String, value: &Value, indent: usize) -> fmt::Result {
    match value {
        Value::Object(fields) => {
            for (index, (key, value)) in fields.iter().enumerate() {
                if index > 0 || !out.ends_with("- ") {
                    write!(out, "{:indent$}", "")?;
                }
                write!(out, "{}:", scalar(key))?;
                match value {
                    Value::Object(fields) if !fields.is_empty() => {
                        out.push('\n');
                        block(out, value, indent + 2)?;
                    }
                    Value::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        block(out, value, indent)?;
                    }
                    value => writeln!(out, " {}", flow(value))?,
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                write!(out, "{:indent$}- ", "")?;
                match item {
                    Value::Object(_) => block(out, item, indent + 2)?,
                    item => writeln!(out, "{}", flow(item))?,
                }
            }
        }
        value => writeln!(out, "{}", flow(value))?,
    }
    Ok(())
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        value => value.to_string(),
    }
}

/// A text without quotation marks where it reads as itself, else with those that go's YAML gives it.
fn scalar(text: &str) -> String {
    let doubled = || Value::from(text).to_string();
    if text.is_empty() || text.contains(char::is_control) {
        return doubled();
    }
    match yaml::read::<Value>(text) {
        Ok(Value::String(read)) if read == text && !is_base_60(text) => text.to_owned(),
        // Of a text that is no text, readers see by these that it is meant as one.
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) if text.trim() == text => {
            doubled()
        }
        _ => format!("'{}'", text.replace('\'', "''")),
    }
}

/// Whether older readers take the text for a number of minutes and seconds, such as `12:30`.
fn is_base_60(text: &str) -> bool {
    text.contains(':')
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, ':' | '.' | '_' | '+' | '-'))
        && !text.starts_with(':')
        && text.matches('.').count() <= 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What Kubernetes 1.36.3 writes for the same.
    #[test]
    fn the_defaults_are_laid_out_as_kubernetes_does() {
        let expected = include_str!("default.yaml");
        assert_eq!(Configuration::default().to_yaml().unwrap(), expected);
    }

    #[test]
    fn texts_have_quotation_marks_where_they_need_them() {
        for (text, written) in [
            ("", "\"\""),
            ("0.0.0.0:10256", "0.0.0.0:10256"),
            ("010.0.0.0/8", "010.0.0.0/8"),
            ("a*", "a*"),
            ("*a", "'*a'"),
            ("a: #b", "'a: #b'"),
            ("it's: so", "'it''s: so'"),
            ("[::]:10256", "'[::]:10256'"),
            ("yes", "\"yes\""),
            ("1.35", "\"1.35\""),
            ("0x1F", "\"0x1F\""),
            ("1e3", "\"1e3\""),
            ("12:30", "\"12:30\""),
            ("~", "\"~\""),
            ("null", "\"null\""),
            ("\u{e9}\t", "\"\u{e9}\\t\""),
            (" a", "' a'"),
        ] {
            assert_eq!(scalar(text), written, "{text:?}");
            assert_eq!(yaml::read::<Value>(written).unwrap(), json!(text), "{written}");
        }
    }

    #[test]
    fn maps_and_lists_are_nested() {
        let value = json!({
            "empty": {"list": [], "map": {}, "null": null},
            "list": ["a", 1],
            "maps": [{"a": 1, "b": [true]}, {"a": 2}],
        });
        let expected = "\
empty:
  list: []
  map: {}
  \"null\": null
list:
- a
- 1
maps:
- a: 1
  b:
  - true
- a: 2
";
        let mut text = String::new();
        block(&mut text, &value, 0).unwrap();
        assert_eq!(text, expected);
        assert_eq!(yaml::read::<Value>(&text).unwrap(), value);
    }
}
