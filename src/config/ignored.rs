//! Variables of the environment that are ignored, and what operators read about them.

/// The most names that one line lists.
const LISTED_MAX: usize = 20;

/// Variables of the environment that begin with `YOINK_` and are not settings. Their values are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoredVariables {
    /// Probably meant as settings.
    pub(super) unknown: Vec<String>,
    /// Set by Kubernetes for a Service whose name begins with `yoink`.
    pub(super) kubernetes: Vec<String>,
}

impl IgnoredVariables {
    /// A warning for the operator, if there are unknown names.
    pub fn warning(&self) -> Option<String> {
        let names = list(&self.unknown)?;
        Some(format!("ignored environment variables, which are not settings: {names}"))
    }

    /// The variables that Kubernetes has set, if there are any.
    pub fn kubernetes(&self) -> Option<String> {
        let names = list(&self.kubernetes)?;
        Some(format!("ignored environment variables that Kubernetes sets for a Service: {names}"))
    }
}

fn list(names: &[String]) -> Option<String> {
    let more = names.len().saturating_sub(LISTED_MAX);
    let listed = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match (names.len(), more) {
        (0, _) => None,
        (_, 0) => Some(listed),
        (_, more) => Some(format!("{listed} and {more} more")),
    }
}
