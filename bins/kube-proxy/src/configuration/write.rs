//! The configuration as a file (`--write-config-to`), laid out as Kubernetes' own tools do.

use serde_json::Value;

use super::{API_VERSION, Configuration, KIND};

impl Configuration {
    /// The file: the keys in the order of the alphabet, all fields that have a meaning.
    pub(crate) fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("apiVersion".to_owned(), API_VERSION.into());
            fields.insert("kind".to_owned(), KIND.into());
        }
        let options = serde_saphyr::ser_options! { indent_step: 2, compact_list_indent: true };
        serde_saphyr::to_string_with_options(&value, options)
    }
}
