//! One Lua script with the fence in front.

const FENCE: &str = include_str!("../../lua/fence.lua");

/// A script under `lua/`, loaded by hash; an unknown hash just loads it again.
#[derive(Debug)]
pub struct Script {
    inner: redis::Script,
}

impl Script {
    /// Prepends `lua/fence.lua` to the body of a script.
    pub fn new(body: &str) -> Self {
        Self { inner: redis::Script::new(&format!("{FENCE}\n{body}")) }
    }

    pub(super) fn call(&self, keys: &[String], args: &[&str]) -> redis::ScriptInvocation<'_> {
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
