//! What the masters of Redis promise together: what the weakest of them promises.

use std::collections::BTreeMap;

use super::{AofCompleteness, Assessment, REDIS_MODES, RedisState};

/// The last of the modes.
const UNKNOWN: &str = "unknown";

/// The masters by name, as each was read last.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedisNodes(BTreeMap<String, Node>);

#[derive(Debug, Clone)]
struct Node {
    aof: AofCompleteness,
    assessment: Assessment,
    replicas: u32,
    is_silent: bool,
}

impl Default for Node {
    /// A master that was not read yet promises nothing.
    fn default() -> Self {
        let (mode, configured_mode) = (UNKNOWN, UNKNOWN);
        let assessment = Assessment { mode, configured_mode, ..Assessment::default() };
        Self { aof: AofCompleteness::default(), assessment, replicas: 0, is_silent: true }
    }
}

impl Node {
    fn outages(&self) -> Vec<String> {
        if self.is_silent {
            vec!["Redis does not answer".to_owned()]
        } else {
            self.assessment.outages.clone()
        }
    }
}

impl RedisNodes {
    /// Takes what was read. A master that did not answer keeps what was read of it before, and promises nothing if that is
    /// nothing; one that is not among `names` is forgotten.
    pub(crate) fn update<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str> + Clone,
        read: &[(String, RedisState)],
    ) {
        self.0.retain(|known, _| names.clone().any(|name| name == known));
        for node in self.0.values_mut() {
            node.is_silent = true;
        }
        for name in names {
            self.0.entry(name.to_owned()).or_default();
        }
        for (name, state) in read {
            let node = self.0.entry(name.clone()).or_default();
            node.assessment = state.assess(&mut node.aof);
            node.replicas = state.replicas;
            node.is_silent = false;
        }
    }

    /// What each master promises, by its name, and how many replicas it has that have caught up.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, &Assessment, u32)> {
        self.0.iter().map(|(name, node)| (name.as_str(), &node.assessment, node.replicas))
    }

    /// What one master promises.
    pub(crate) fn mode(&self, name: &str) -> &'static str {
        self.0.get(name).map_or(UNKNOWN, |node| node.assessment.mode)
    }

    /// The assessment of all. Where there are several, each reason names its master.
    pub(crate) fn assessment(&self) -> Assessment {
        let rank = |mode: &str| REDIS_MODES.iter().position(|it| *it == mode);
        let weakest = |mode: fn(&Assessment) -> &'static str| {
            let modes = self.0.values().map(|node| mode(&node.assessment));
            modes.max_by_key(|mode| rank(mode)).unwrap_or_default()
        };
        let mut all = Assessment {
            mode: weakest(|it| it.mode),
            configured_mode: weakest(|it| it.configured_mode),
            ..Assessment::default()
        };
        for (name, node) in &self.0 {
            let assessment = &node.assessment;
            let named = |reason: &String| {
                if self.0.len() == 1 { reason.clone() } else { format!("{name}: {reason}") }
            };
            all.refusals.extend(assessment.refusals.iter().map(named));
            all.unusable.extend(assessment.unusable.iter().map(named));
            for warning in &assessment.warnings {
                if !all.warnings.contains(warning) {
                    all.warnings.push(warning);
                }
            }
            all.outages.extend(node.outages().iter().map(named));
        }
        // The partitions of the others are sold.
        if self.0.values().any(|node| node.outages().is_empty()) {
            all.partial_outages = std::mem::take(&mut all.outages);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(mode: &'static str, replicas: u32, refusal: &str, warning: &'static str) -> Node {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let assessment = Assessment {
            mode,
            configured_mode: mode,
            refusals: some(refusal).into_iter().collect(),
            warnings: Some(warning).filter(|text| !text.is_empty()).into_iter().collect(),
            ..Assessment::default()
        };
        Node { assessment, replicas, is_silent: false, ..Node::default() }
    }

    fn nodes(all: &[(&str, Node)]) -> RedisNodes {
        RedisNodes(all.iter().map(|(name, node)| ((*name).to_owned(), node.clone())).collect())
    }

    #[test]
    fn several_masters_promise_what_the_weakest_of_them_does() {
        let all = nodes(&[
            ("a:1", node("always", 2, "", "slow")),
            ("b:1", node("memory", 0, "it may evict", "slow")),
            ("c:1", node("everysec", 1, "", "")),
        ]);
        let assessed = all.assessment();
        assert_eq!(assessed.mode, "memory");
        let each: Vec<_> =
            all.each().map(|(name, it, replicas)| (name, it.mode, replicas)).collect();
        assert_eq!(each, [("a:1", "always", 2), ("b:1", "memory", 0), ("c:1", "everysec", 1)]);
        assert_eq!(assessed.refusals, ["b:1: it may evict"]);
        assert_eq!(assessed.warnings, ["slow"]);
    }

    #[test]
    fn only_master_is_not_named() {
        let one = nodes(&[("", node("always", 1, "it may evict", ""))]);
        let assessed = one.assessment();
        assert_eq!(assessed.mode, "always");
        assert_eq!(assessed.refusals, ["it may evict"]);
    }

    #[test]
    fn outage_of_one_of_several_masters_is_partial() {
        let mut full = node("always", 1, "", "");
        full.assessment.outages.push("it is full".to_owned());
        let two = nodes(&[("a:1", full.clone()), ("b:1", node("always", 1, "", ""))]);
        let assessed = two.assessment();
        assert_eq!(
            (assessed.outages.len(), &assessed.partial_outages[..]),
            (0, &["a:1: it is full".to_owned()][..])
        );
        let both = nodes(&[("a:1", full.clone()), ("b:1", full.clone())]).assessment();
        assert_eq!((both.outages.len(), both.partial_outages.len()), (2, 0));
        let one = nodes(&[("", full)]).assessment();
        assert_eq!(
            (&one.outages[..], one.partial_outages.len()),
            (&["it is full".to_owned()][..], 0)
        );
    }

    #[test]
    fn silent_master_keeps_its_assessment_and_a_former_one_loses_it() {
        let mut all = nodes(&[
            ("a:1", node("always", 1, "", "")),
            ("b:1", node("always", 1, "it may evict", "")),
        ]);
        all.update(["a:1", "b:1"].into_iter(), &[]);
        let assessed = all.assessment();
        assert_eq!(assessed.refusals, ["b:1: it may evict"]);
        assert_eq!(assessed.outages.len(), 2, "neither answers: {assessed:?}");
        all.update(std::iter::once("a:1"), &[]);
        assert_eq!(all.assessment().refusals, [""; 0]);
    }

    #[test]
    fn master_that_was_not_read_yet_promises_nothing() {
        let mut all =
            nodes(&[("a:1", node("always", 1, "", "")), ("b:1", node("always", 1, "", ""))]);
        // c:1 takes the place of b:1.
        all.update(["a:1", "c:1"].into_iter(), &[]);
        assert_eq!(
            (all.mode("a:1"), all.mode("c:1"), all.mode("b:1")),
            ("always", UNKNOWN, UNKNOWN)
        );
        assert_eq!(all.each().map(|(_, _, replicas)| replicas).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((all.assessment().mode, all.assessment().configured_mode), (UNKNOWN, UNKNOWN));
        assert_eq!(all.assessment().refusals, [""; 0]);
    }
}
