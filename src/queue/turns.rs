//! Turns: things that wait, of several flows, each of which has its turn. One of a sender who brings
//! little does not wait behind all of one who brings much. A higher priority goes before all lower ones.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::marks::Flow;

/// What waits, in the order of arrival within a flow.
#[derive(Debug)]
pub struct Turns<T> {
    flows: HashMap<Flow, VecDeque<T>>,
    /// The flows of which something waits, the next first, by their priority. None is empty.
    order: BTreeMap<u32, VecDeque<Flow>>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { flows: HashMap::new(), order: BTreeMap::new(), len: 0 }
    }
}

impl<T> Turns<T> {
    /// Adds a thing behind those of its flow; a new flow is the last of its priority to have its turn.
    pub fn push(&mut self, flow: Flow, thing: T) {
        self.flow(flow).push_back(thing);
    }

    /// Adds a thing where there is room for so many. What must then leave is returned: the last of the
    /// flow that has most.
    pub fn push_bounded(&mut self, flow: Flow, thing: T, most: usize) -> Option<T> {
        self.push(flow, thing);
        if self.len <= most {
            return None;
        }
        let (longest, _) = self.longest()?;
        self.pop_last_of(longest)
    }

    /// Puts a thing back to where it was taken from: before those of its flow.
    pub fn put_back(&mut self, flow: Flow, thing: T) {
        self.flow(flow).push_front(thing);
    }

    fn flow(&mut self, flow: Flow) -> &mut VecDeque<T> {
        self.len += 1;
        let order = &mut self.order;
        self.flows.entry(flow).or_insert_with(|| {
            order.entry(flow.rank()).or_default().push_back(flow);
            VecDeque::new()
        })
    }

    /// Takes the next: the first of the flow whose turn it is.
    pub fn pop(&mut self) -> Option<(Flow, T)> {
        let mut first = self.order.first_entry()?;
        let flow = first.get_mut().pop_front()?;
        let waiting = self.flows.get_mut(&flow)?;
        let thing = waiting.pop_front()?;
        self.len -= 1;
        if !waiting.is_empty() {
            first.get_mut().push_back(flow);
            return Some((flow, thing));
        }
        self.flows.remove(&flow);
        if first.get().is_empty() {
            first.remove();
        }
        Some((flow, thing))
    }

    /// Takes the last of a flow.
    pub fn pop_last_of(&mut self, flow: Flow) -> Option<T> {
        let last = self.flows.get(&flow)?.len().checked_sub(1)?;
        self.remove(flow, last)
    }

    /// Takes the first of a flow that `wants` it.
    pub fn pull(&mut self, flow: Flow, wants: impl Fn(&T) -> bool) -> Option<T> {
        let place = self.flows.get(&flow)?.iter().position(wants)?;
        self.remove(flow, place)
    }

    fn remove(&mut self, flow: Flow, place: usize) -> Option<T> {
        let waiting = self.flows.get_mut(&flow)?;
        let thing = waiting.remove(place)?;
        self.len -= 1;
        if waiting.is_empty() {
            self.flows.remove(&flow);
            if let Some(order) = self.order.get_mut(&flow.rank()) {
                order.retain(|other| *other != flow);
            }
            self.order.retain(|_, order| !order.is_empty());
        }
        Some(thing)
    }

    /// The flow of which most waits, and how much; of several, the one that has its turn last.
    pub fn longest(&self) -> Option<(Flow, usize)> {
        // By the order of turns, so that nothing depends on the order of a hash map.
        let lengths = self.order.values().flatten().map(|flow| (*flow, self.len_of(*flow)));
        lengths.reduce(|longest, other| if other.1 >= longest.1 { other } else { longest })
    }

    /// The highest priority of which something waits; 0 is before all others.
    pub fn rank(&self) -> Option<u32> {
        self.order.keys().next().copied()
    }

    /// How much waits of a flow.
    pub fn len_of(&self, flow: Flow) -> usize {
        self.flows.get(&flow).map_or(0, VecDeque::len)
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How much waits of each flow.
    pub fn lengths(&self) -> impl Iterator<Item = (Flow, usize)> {
        self.flows.iter().map(|(flow, waiting)| (*flow, waiting.len()))
    }
}

impl<T> Iterator for Turns<T> {
    type Item = T;

    /// See [`Self::pop`].
    fn next(&mut self) -> Option<T> {
        self.pop().map(|(_, thing)| thing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(number: i64) -> Flow {
        Flow::from_i64(number)
    }

    #[test]
    fn flows_take_turns_and_keep_their_order() {
        let mut turns = Turns::default();
        (0..5).for_each(|number| turns.push(flow(1), number));
        (10..12).for_each(|number| turns.push(flow(2), number));
        let order: Vec<_> = turns.collect();
        assert_eq!(order, [0, 10, 1, 11, 2, 3, 4]);
    }

    #[test]
    fn a_higher_priority_goes_first_and_leaves_last() {
        let of_rank = |rank: i64, sender: i64| flow((rank << 26) + sender);
        let mut turns = Turns::default();
        for (rank, sender) in [(9, 1), (9, 2), (4, 1), (18, 1), (4, 1), (9, 1)] {
            turns.push(of_rank(rank, sender), (rank, sender));
        }
        assert_eq!(turns.push_bounded(of_rank(18, 1), (18, 1), 6), Some((18, 1)));
        assert_eq!(turns.pull(of_rank(9, 2), |_| true), Some((9, 2)));
        assert_eq!(turns.rank(), Some(4));
        let order: Vec<_> = turns.collect();
        assert_eq!(order, [(4, 1), (4, 1), (9, 1), (9, 1), (18, 1)]);
    }

    #[test]
    fn who_has_little_finds_room_in_the_place_of_who_has_much() {
        let mut turns = Turns::default();
        (0..5).for_each(|number| assert_eq!(turns.push_bounded(flow(1), number, 5), None));
        assert_eq!(turns.push_bounded(flow(1), 5, 5), Some(5), "it has its share");
        assert_eq!(turns.push_bounded(flow(2), 10, 5), Some(4));
        assert_eq!((turns.len(), turns.len_of(flow(1)), turns.len_of(flow(2))), (5, 4, 1));
    }

    proptest! {
        /// Between two turns of a flow that waits, no other has more than one.
        #[test]
        fn whoever_waits_is_never_passed_twice(verbs in proptest::collection::vec((0..6_i64, any::<bool>()), 1..300)) {
            let mut turns = Turns::default();
            // For each flow that waits, who had a turn since its own.
            let mut passed: HashMap<Flow, Vec<Flow>> = HashMap::new();
            for (number, is_push) in verbs {
                if is_push {
                    turns.push(flow(number), ());
                    passed.entry(flow(number)).or_default();
                    continue;
                }
                let Some((had, ())) = turns.pop() else {
                    prop_assert!(turns.is_empty() && passed.is_empty());
                    continue;
                };
                passed.remove(&had);
                for before in passed.values_mut() {
                    prop_assert!(!before.contains(&had));
                    before.push(had);
                }
                if turns.len_of(had) > 0 {
                    passed.insert(had, Vec::new());
                }
                prop_assert_eq!(turns.len(), turns.lengths().map(|(_, len)| len).sum::<usize>());
            }
        }
    }
}
