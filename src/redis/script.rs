//! One Lua script with the fence in front.

const FENCE: &str = include_str!("../../lua/fence.lua");

/// A script under `lua/`, loaded by hash; an unknown hash just loads it again.
#[derive(Debug)]
pub struct Script {
    name: &'static str,
    text: String,
    inner: ::redis::Script,
}

impl Script {
    /// Prepends `lua/fence.lua` to the body of a script; metrics call it by its name.
    pub fn new(name: &'static str, body: &str) -> Self {
        let text = format!("{FENCE}\n{body}");
        Self { name, inner: ::redis::Script::new(&text), text }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// A call that brings its text along: it needs nothing to have been loaded.
    pub(super) fn whole_call(&self, keys: &[String], args: &[&str]) -> ::redis::Cmd {
        let mut call = ::redis::cmd("EVAL");
        call.arg(&self.text).arg(keys.len()).arg(keys).arg(args);
        call
    }

    pub(super) fn call(&self, keys: &[String], args: &[&str]) -> ::redis::ScriptInvocation<'_> {
        let mut call = self.inner.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for arg in args {
            call.arg(*arg);
        }
        call
    }
}
