//! A Lua script, declared once: its name, its text, its keys in order, and what its reply means.

use std::{borrow::Cow, sync::OnceLock};

use ::redis::{ErrorKind, RedisResult, ServerErrorKind, Value};

use super::{Connection, FenceReason, Key, RedisCallError};

const FENCE: &str = include_str!("../../lua/fence.lua");

/// A script under `lua/` whose reply is a `T`. It is loaded by hash; Redis gets its text again when it does not know
/// the hash.
pub struct Script<T = ()> {
    pub(super) name: &'static str,
    body: &'static str,
    /// Its KEYS in order.
    pub(crate) keys: &'static [Key],
    parse: fn(&[&str]) -> Option<T>,
    loaded: OnceLock<Loaded>,
}

struct Loaded {
    text: String,
    script: ::redis::Script,
}

impl<T> Script<T> {
    /// A script that metrics call `name`. `keys` are its KEYS in order; a call may add keys that only it knows.
    /// `parse` gets the elements of the reply, and returns `None` for a reply that the script never gives.
    pub const fn new(
        name: &'static str,
        body: &'static str,
        keys: &'static [Key],
        parse: fn(&[&str]) -> Option<T>,
    ) -> Self {
        Self { name, body, keys, parse, loaded: OnceLock::new() }
    }

    /// The text with `lua/fence.lua` in front.
    fn loaded(&self) -> &Loaded {
        self.loaded.get_or_init(|| {
            let text = format!("{FENCE}\n{}", self.body);
            Loaded { script: ::redis::Script::new(&text), text }
        })
    }

    /// A call that carries the text: it works whether or not Redis knows the script.
    pub(super) fn eval(&self, keys: &[String], args: &[&str]) -> ::redis::Cmd {
        let mut call = ::redis::cmd("EVAL");
        call.arg(&self.loaded().text).arg(keys.len()).arg(keys).arg(args);
        call
    }

    /// Calls the script by its hash, and loads it if Redis does not know the hash. Not by the library's own call, which
    /// copies each argument into memory of its own first.
    pub(super) async fn call(
        &self,
        connection: &mut Connection,
        keys: &[String],
        args: &[&str],
    ) -> RedisResult<Value> {
        let script = &self.loaded().script;
        let all = keys.iter().map(String::len).chain(args.iter().map(|arg| arg.len()));
        let bytes = all.sum::<usize>() + 64;
        let mut call = ::redis::Cmd::with_capacity(3 + keys.len() + args.len(), bytes);
        call.arg("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys).arg(args);
        match call.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                script.load_async(connection).await?;
                call.query_async(connection).await
            }
            reply => reply,
        }
    }

    /// Parses a reply, whose first element is its status.
    /// `Fenced` when the script found its partition fenced, `Malformed` when this script gives no such reply.
    pub(crate) fn parse(&self, reply: &Value) -> Result<T, RedisCallError> {
        let Value::Array(items) = reply else {
            return Err(RedisCallError::Malformed(vec![format!("{reply:?}")]));
        };
        let elements: Vec<Cow<'_, str>> = items.iter().map(element).collect();
        let elements: Vec<&str> = elements.iter().map(AsRef::as_ref).collect();
        if let ["fenced", reason] = elements.as_slice() {
            return Err(RedisCallError::Fenced(FenceReason::from_label(reason)));
        }
        let malformed =
            || RedisCallError::Malformed(elements.iter().map(|&element| element.into()).collect());
        (self.parse)(&elements).ok_or_else(malformed)
    }
}

/// An element of a reply as text. What is not UTF-8 in it is replaced, since entries may hold any bytes.
fn element(value: &Value) -> Cow<'_, str> {
    if let Value::BulkString(bytes) = value {
        String::from_utf8_lossy(bytes)
    } else {
        format!("{value:?}").into()
    }
}

/// Declares a script: the type of its reply, its name, its text, its keys in order, and the meaning of each reply that
/// it gives. An arm returns by `?` where an element cannot be parsed.
macro_rules! script {
    ($script:ident: $reply:ty = $name:literal, $body:expr, [$($key:ident),*] {
        $($elements:pat => $meaning:expr,)*
    }) => {
        pub(super) static $script: $crate::redis::Script<$reply> = $crate::redis::Script::new(
            $name,
            $body,
            &[$($crate::redis::Key::$key),*],
            |elements| Some(match *elements {
                $($elements => $meaning,)*
                _ => return None,
            }),
        );
    };
}
pub(crate) use script;

#[cfg(test)]
mod tests {
    use super::*;

    script!(SCRIPT: u32 = "test", "", [Meta] {
        ["count", count] => count.parse().ok()?,
    });

    fn reply(elements: &[&str]) -> Value {
        Value::Array(elements.iter().map(|element| Value::BulkString((*element).into())).collect())
    }

    #[test]
    fn reply_is_parsed_unless_the_partition_is_fenced() {
        assert_eq!(SCRIPT.parse(&reply(&["count", "7"])).unwrap(), 7);
        let fenced = SCRIPT.parse(&reply(&["fenced", "closed"])).unwrap_err();
        assert!(matches!(fenced, RedisCallError::Fenced(FenceReason::Closed)), "{fenced:?}");
    }

    #[test]
    fn reply_that_the_script_never_gives_is_malformed() {
        for bad in [reply(&[]), reply(&["count"]), reply(&["count", "x"]), Value::Int(7)] {
            let error = SCRIPT.parse(&bad).unwrap_err();
            assert!(matches!(error, RedisCallError::Malformed(_)), "{error:?}");
        }
    }
}
