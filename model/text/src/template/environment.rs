//! The Jinja environment that Hugging Face's chat templates expect.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

use super::json::{Slice, dumps, python_float};

/// Words of a template that refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// Compiles `source` under `name`.
pub(super) fn compile(name: &'static str, source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_formatter(format);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_template_owned(name, source)?;
    Ok(environment)
}

/// The words that `raise_exception` was called with, if that is why rendering failed.
pub(super) fn refusal(error: &Error) -> Option<&str> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<Refusal>().map(|refusal| refusal.0.as_str())
}

fn raise_exception(words: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(words)))
}

/// `tojson(indent=None)`; the other arguments of Hugging Face's filter have one meaningful value each and are accepted.
fn tojson(value: Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let text = match value.downcast_object_ref::<Slice>() {
        Some(slice) => dumps(slice, indent),
        None => dumps(&value, indent),
    };
    text.map(Value::from).map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))
}

/// Prints values as Python's `str` does where Jinja's own words differ.
fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&python_float(number)).map_err(Error::from),
            Err(_) => minijinja::escape_formatter(out, state, value),
        },
        _ => minijinja::escape_formatter(out, state, value),
    }
}
