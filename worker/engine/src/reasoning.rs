//! How far a sequence's reasoning is, and what the thinking budget makes of it. The same steps count a token that is drawn
//! here and one that an earlier attempt said, so that a resumed sequence closes its reasoning where it would have.

use crate::spec::ThinkingBudget;

/// The reasoning of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reasoning {
    open: bool,
    /// Outputs that came while it was open.
    tokens: u32,
    /// Close ids that have come, one after another.
    closed: usize,
}

impl Reasoning {
    /// Before the first output; `open` where the prompt has opened it.
    pub(crate) fn new(open: bool) -> Self {
        Self { open, ..Self::default() }
    }

    /// Outputs that came while it was open.
    pub(crate) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The close id that the budget puts in place of a drawn one.
    pub(crate) fn forced(&self, budget: Option<&ThinkingBudget>) -> Option<u32> {
        let budget = budget?;
        let spent = self.open && self.tokens >= budget.tokens;
        if self.closed == 0 && !spent {
            return None;
        }
        budget.close_ids.get(self.closed).copied()
    }

    /// Takes the next output, forced or not, and whether the text is inside the reasoning after it.
    pub(crate) fn said(&mut self, token: u32, open: bool, budget: Option<&ThinkingBudget>) {
        let forced = self.forced(budget);
        self.closed = match forced {
            Some(id) if id == token => self.closed + 1,
            // An earlier attempt with another budget: what is closed by half begins anew.
            Some(_) => 0,
            None => self.closed,
        };
        self.tokens += u32::from(self.open);
        self.open = open;
        if !open && self.closed == budget.map_or(0, |budget| budget.close_ids.len()) {
            // Should the model begin to reason again, it is closed again.
            self.closed = 0;
        }
    }
}
