//! `/tokenize` and `/detokenize`: what the tokenizer makes of a text, a conversation, or ids. They need no worker, and no window bounds them: they tell
//! how long something is. Answers are written as they are made.

use std::io::Write;

use m1_text::grow;

use crate::error::ApiError;

use super::Context;
use super::body::{Fields, open};
use super::echo::invalid;
use super::ids;
use super::text::{conversation, encode_to, render_to};

/// Bytes that a text of ids may have beyond three times the request: a short request for a long text asks for no tokens that anybody wrote.
const AMPLE: usize = 512 * 1024;

/// `{"prompt": text}` or `{"messages": [..], "tools": [..]}` to `{"count", "max_model_len", "tokens"}`, as JSON.
///
/// # Errors
/// Neither or both, or what is wrong with them; nobody waits any more.
pub fn encode(ctx: &Context<'_>, body: &[u8]) -> Result<Vec<u8>, ApiError> {
    const ALLOWED: &str = "a string, or messages in its place";
    let fields = open(body, &["model", "prompt", "messages", "tools"])?;
    ctx.check()?;
    check_model(ctx, &fields)?;
    let (mut list, mut count) = (Vec::new(), 0usize);
    let mut take = |ids: &[u32]| {
        // An id and its comma.
        grow(&mut list, ids.len() * 11, usize::MAX);
        for id in ids {
            let comma = if count == 0 { "" } else { "," };
            count += 1;
            // Writing to memory cannot fail.
            let _ = write!(list, "{comma}{id}");
        }
    };
    match (fields.text("prompt")?, fields.get("messages")) {
        (Some(text), None) => encode_to(ctx, "prompt", &text, &mut take)?,
        (None, Some(messages)) => {
            let conversation = conversation(ctx, "messages", messages, fields.get("tools"))?;
            render_to(ctx, "messages", conversation, &mut take)?;
        }
        (None, None) => return Err(ApiError::missing("prompt", ALLOWED)),
        (Some(_), Some(_)) => {
            let given = fields.get("prompt").map(|given| invalid("prompt", given, ALLOWED));
            return Err(given.unwrap_or_else(|| ApiError::missing("prompt", ALLOWED)));
        }
    }
    let head = format!("{{\"count\":{count},\"max_model_len\":{},\"tokens\":[", ctx.limits.window);
    list.reserve_exact(head.len() + 2);
    list.splice(0..0, head.into_bytes());
    list.extend_from_slice(b"]}");
    Ok(list)
}

/// `{"tokens": [..]}` to `{"prompt": text}`, control tokens by name, as JSON.
///
/// # Errors
/// What is wrong with the ids, or their text is out of all proportion to them; nobody waits any more.
pub fn decode(ctx: &Context<'_>, body: &[u8]) -> Result<Vec<u8>, ApiError> {
    let fields = open(body, &["model", "tokens"])?;
    ctx.check()?;
    check_model(ctx, &fields)?;
    let array = fields.get("tokens").ok_or_else(|| ApiError::missing("tokens", "an array of token ids"))?;
    if !array.get().starts_with('[') {
        return Err(invalid("tokens", array, "an array"));
    }
    let ids = ids::read(ctx, "tokens", array, usize::MAX)?;
    let most = body.len().saturating_mul(3).saturating_add(AMPLE);
    let (mut out, mut ended) = (b"{\"prompt\":\"".to_vec(), Ok(()));
    ctx.model.tokenizer.decode_with_control_to(&ids.kept, &mut |text| {
        ended = ctx.check().and_then(|()| append(&mut out, text, most));
        ended.is_ok()
    });
    ended?;
    out.extend_from_slice(b"\"}");
    Ok(out)
}

fn append(out: &mut Vec<u8>, text: &str, most: usize) -> Result<(), ApiError> {
    let quoted = serde_json::to_string(text).map_err(|error| ApiError::Internal(error.to_string()))?;
    let inside = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or("");
    if out.len() + inside.len() > most {
        let message =
            format!("tokens: their text is longer than {most} bytes, three times the request; allowed: fewer tokens at once");
        return Err(ApiError::Invalid { param: "tokens".to_owned(), message });
    }
    grow(out, inside.len(), most);
    out.extend_from_slice(inside.as_bytes());
    Ok(())
}

fn check_model(ctx: &Context<'_>, fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.text("model")?.map_or(Ok(()), |name| ctx.model.check_name(&name))
}
