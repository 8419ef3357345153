//! Which of several answers about the masters is used. Pure.
//!
//! Must never: use an answer that is older than one that was used before, or one of another cluster.

use std::collections::{BTreeMap, BTreeSet};

use super::slots::Node;

/// That a node is the master: of a slot, or of what the Sentinels watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// The configuration epoch: the later of two masters has the higher one.
    pub(super) epoch: u64,
    /// The id of a node of a cluster; empty where a Sentinel names the node.
    pub(super) id: String,
    pub(super) node: Node,
}

/// The claim with the highest epoch. Of several with this epoch, the one that was used before stays. `None` if each is
/// older than that one.
pub(super) fn newest(
    claims: impl IntoIterator<Item = Claim>,
    before: Option<&Claim>,
) -> Option<Claim> {
    let rank = |claim: &Claim| {
        let is_same = before.map(|before| (before.id == claim.id, before.node == claim.node));
        (claim.epoch, is_same)
    };
    let newest = claims.into_iter().max_by_key(rank)?;
    before.is_none_or(|before| newest.epoch >= before.epoch).then_some(newest)
}

/// What one node of a cluster reports of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// The id of the node that reports.
    pub(super) me: String,
    /// Whether the cluster is up for it; not if it is cut off from most masters.
    pub(super) is_ok: bool,
    /// All nodes by their ids.
    pub(super) members: BTreeMap<String, Member>,
    /// Where the nodes that serve slots are reached, by their ids.
    pub(super) addresses: BTreeMap<String, Node>,
}

/// A node in a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) epoch: u64,
    /// The first and the last slot of each range.
    pub(super) slots: Vec<(u16, u16)>,
}

impl View {
    fn has(&self, id: &str, slot: u16) -> bool {
        let member = self.members.get(id);
        member.is_some_and(|it| it.slots.iter().any(|(from, to)| (*from..=*to).contains(&slot)))
    }

    fn claim(&self, slot: u16) -> Option<Claim> {
        let (id, member) = self.members.iter().find(|(id, _)| self.has(id, slot))?;
        let node = self.addresses.get(id)?.clone();
        Some(Claim { epoch: member.epoch, id: id.clone(), node })
    }

    /// Whether it is one of the same cluster: it has most of these nodes.
    fn is_of(&self, known: &BTreeSet<&str>) -> bool {
        let found = known.iter().filter(|id| self.members.contains_key(**id)).count();
        known.is_empty() || 2 * found > known.len()
    }
}

/// The views to use: those of the cluster whose masters were used before and, if the cluster is up for some nodes, only
/// theirs.
pub(super) fn usable(views: Vec<View>, before: &[Option<Claim>]) -> Vec<View> {
    let known: BTreeSet<&str> = before.iter().flatten().map(|claim| claim.id.as_str()).collect();
    let mut views: Vec<View> = views.into_iter().filter(|view| view.is_of(&known)).collect();
    if views.iter().any(|view| view.is_ok) {
        views.retain(|view| view.is_ok);
    }
    views
}

/// The master of a slot; `None` if no view has a newer one than that of before. What a node reports of its own slots
/// counts more than what the others report of it: they may not know yet that it has lost the slot.
pub(super) fn owner(slot: u16, views: &[View], before: Option<&Claim>) -> Option<Claim> {
    let denied = |id: &str| views.iter().any(|view| view.me == id && !view.has(id, slot));
    let claims = views.iter().filter_map(|view| view.claim(slot));
    newest(claims.filter(|claim| !denied(&claim.id)), before.filter(|it| !denied(&it.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(epoch: u64, id: &str, host: &str) -> Claim {
        Claim { epoch, id: id.to_owned(), node: Node { host: host.to_owned(), port: 1 } }
    }

    /// Nodes with their epochs; slot 7 belongs to `owner`, and slot 8 to the first of the others.
    fn view(me: &str, is_ok: bool, nodes: &[(&str, u64)], owner: &str) -> View {
        let other = nodes.iter().map(|(id, _)| *id).find(|id| *id != owner);
        let members = nodes.iter().map(|(id, epoch)| {
            let of_owner = (*id == owner).then_some((0, 7));
            let slots = of_owner.into_iter().chain((Some(*id) == other).then_some((8, 8)));
            ((*id).to_owned(), Member { epoch: *epoch, slots: slots.collect() })
        });
        let address = |(id, _): &(&str, u64)| {
            ((*id).to_owned(), Node { host: format!("host-{id}"), port: 1 })
        };
        View {
            me: me.to_owned(),
            is_ok,
            members: members.collect(),
            addresses: nodes.iter().map(address).collect(),
        }
    }

    fn owner_in(views: &[View], before: Option<&Claim>) -> Option<String> {
        let before: Vec<_> = vec![before.cloned()];
        let views = usable(views.to_vec(), &before);
        owner(7, &views, before[0].as_ref()).map(|claim| claim.id)
    }

    #[test]
    fn older_answer_of_a_sentinel_never_replaces_a_newer_one() {
        let (old, new) = (claim(5, "", "a"), claim(6, "", "b"));
        assert_eq!(newest([new.clone(), old.clone()], None), Some(new.clone()));
        assert_eq!(newest([new.clone(), old.clone()], Some(&old)), Some(new.clone()));
        assert_eq!(newest([old.clone()], Some(&new)), None);
        assert_eq!(newest([old.clone()], Some(&old)), Some(old));
        assert_eq!(newest([], Some(&new)), None);
        assert_eq!(newest([], None), None);
    }

    #[test]
    fn address_in_use_stays_while_an_answer_of_the_same_epoch_has_it() {
        let (a, b) = (claim(5, "", "a"), claim(5, "", "b"));
        for both in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
            assert_eq!(newest(both.clone(), Some(&a)), Some(a.clone()));
            assert_eq!(newest(both, Some(&b)), Some(b.clone()));
        }
        assert_eq!(newest([b.clone()], Some(&a)), Some(b), "its host has another name now");
        // A node keeps its id where its address changes.
        let (same, other) = (claim(5, "x", "new"), claim(5, "y", "a"));
        assert_eq!(newest([other, same.clone()], Some(&claim(5, "x", "a"))), Some(same));
    }

    #[test]
    fn owner_with_the_highest_configuration_epoch_has_the_slot() {
        // b was promoted; r does not know it, and its own elections raise the current epoch, which does not count.
        let nodes = [("a", 3), ("b", 9), ("r", 3)];
        let old = [("a", 3), ("b", 3), ("r", 3)];
        let views = [view("r", true, &old, "a"), view("b", true, &nodes, "b")];
        assert_eq!(owner_in(&views, None).as_deref(), Some("b"));
        assert_eq!(owner_in(&views, Some(&claim(3, "a", "host-a"))).as_deref(), Some("b"));
        let late = [view("r", true, &old, "a")];
        assert_eq!(owner_in(&late, Some(&claim(9, "b", "host-b"))), None);
    }

    #[test]
    fn node_that_is_cut_off_counts_only_where_no_other_answers() {
        let (forced, ok) = ([("a", 3), ("b", 9)], [("a", 3), ("b", 2)]);
        let views = [view("b", false, &forced, "b"), view("a", true, &ok, "a")];
        assert_eq!(owner_in(&views, None).as_deref(), Some("a"));
        assert_eq!(owner_in(&views[..1], None).as_deref(), Some("b"));
    }

    #[test]
    fn node_that_reports_that_a_slot_has_left_it_is_believed() {
        // c does not know yet that the slot moved to b, but that a has a higher epoch for another slot.
        let moved = [("a", 15), ("b", 12), ("c", 1)];
        let late = view("c", true, &moved, "a");
        let views = [late.clone(), view("a", true, &moved, "b"), view("b", true, &moved, "b")];
        assert_eq!(owner_in(&views, None).as_deref(), Some("b"));
        assert_eq!(owner_in(&views, Some(&claim(15, "a", "host-a"))).as_deref(), Some("b"));
        assert_eq!(owner_in(&[late], None).as_deref(), Some("a"), "a does not answer");
    }

    #[test]
    fn view_of_another_cluster_is_not_used() {
        let (ours, theirs) = ([("a", 3), ("b", 2)], [("x", 90), ("y", 91)]);
        let views = [view("x", true, &theirs, "x"), view("b", true, &ours, "a")];
        let before = [Some(claim(3, "a", "host-a")), Some(claim(2, "b", "host-b")), None];
        assert_eq!(usable(views.to_vec(), &before), views[1..]);
        assert_eq!(usable(views[..1].to_vec(), &before), []);
        assert_eq!(usable(views.to_vec(), &[]), views, "nothing was used before");
        // A node that was reset is alone in its view.
        let alone = view("a", true, &[("a", 0)], "a");
        assert_eq!(usable(vec![alone], &before), []);
    }

    #[test]
    fn slot_without_a_master_or_without_its_address_has_no_owner() {
        let mut one = view("b", true, &[("a", 3), ("b", 2)], "a");
        assert_eq!(owner(9, &[one.clone()], None), None);
        one.addresses.remove("a");
        assert_eq!(owner(7, &[one.clone()], None), None);
        assert_eq!(owner(8, &[one], None).unwrap().node.host, "host-b");
    }
}
