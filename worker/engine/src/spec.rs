//! What a caller asks for, checked once: a [`SequenceSpec`] can be served by this worker, or there is none.

use crate::reasoning::Reasoning;
use crate::routing::TallyId;
use crate::sampler::Sampling;
use crate::step::Heard;

/// Most ids whose log-probabilities can be asked for beside the chosen one; OpenAI's own limit.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// What one worker can hold. All at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Ids the model's head has.
    pub vocab: u32,
    /// Prompt and output tokens of one sequence.
    pub max_context: u32,
    /// State slots: sequences that run at once.
    pub slots: u32,
    /// Tokens per KV block.
    pub kv_block_tokens: u32,
    /// KV blocks; only the softmax layers need them.
    pub kv_blocks: u32,
}

impl Limits {
    /// Tokens whose KV fits.
    pub fn kv_tokens(&self) -> u64 {
        u64::from(self.kv_blocks) * u64::from(self.kv_block_tokens)
    }

    /// Blocks that the KV of so many tokens takes.
    pub(crate) fn blocks_of(&self, tokens: u64) -> u64 {
        tokens.div_ceil(u64::from(self.kv_block_tokens.max(1)))
    }
}

/// How long the model may reason, and what ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinkingBudget {
    /// Output tokens while the reasoning is open.
    pub tokens: u32,
    /// Ids of the text that closes the reasoning, fed when the budget is spent.
    pub close_ids: Vec<u32>,
}

/// Whom a sequence goes behind where not all can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It has time: it waits behind the others, and pauses before them. It does not starve.
    Batch,
}

/// A request as it came. [`SequenceSpec::new`] checks it.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceRequest {
    /// Prompt ids.
    pub prompt: Vec<u32>,
    /// What earlier attempts generated. It follows the prompt and counts as output: draws, budgets and lengths go on from it.
    pub said: Vec<u32>,
    /// Output tokens at most, said ones among them; at least 1 more than those.
    pub max_tokens: u32,
    /// How ids are drawn.
    pub sampling: Sampling,
    /// Ids that end the sequence; the one that did is the last output. An id beyond the vocabulary never comes.
    pub stop_ids: Vec<u32>,
    /// Within (0.5, 1]: a token whose first expert weighs at least this uses that expert alone. 1 is exact.
    pub expert_threshold: f32,
    /// Bounds the reasoning.
    pub thinking: Option<ThinkingBudget>,
    /// Log-probabilities: 0 none, 1 of the chosen id, n + 1 also of the n most probable ones.
    pub logprobs: u32,
    /// Prefill tokens per step of this sequence; 0 means the worker's own, which also bounds it.
    pub prefill_chunk: u32,
    /// Return the logits of every position. Such a sequence draws from the whole vocabulary: nothing is masked.
    pub raw_logits: bool,
    /// The sequence's own counts of experts are not kept, only their totals.
    pub omit_routing: bool,
    /// Whose experts these are counted with, beside the worker's own.
    pub tally: Option<TallyId>,
    /// Whom it goes behind.
    pub priority: Priority,
}

impl SequenceRequest {
    /// A greedy request with everything else off.
    pub fn greedy(prompt: Vec<u32>, max_tokens: u32) -> Self {
        Self {
            prompt,
            said: Vec::new(),
            max_tokens,
            sampling: Sampling::GREEDY,
            stop_ids: Vec::new(),
            expert_threshold: 1.0,
            thinking: None,
            logprobs: 0,
            prefill_chunk: 0,
            raw_logits: false,
            omit_routing: false,
            tally: None,
            priority: Priority::Interactive,
        }
    }
}

/// A request that this worker can serve.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceSpec {
    request: SequenceRequest,
    /// As it stands after what was said.
    reasoning: Reasoning,
}

impl SequenceSpec {
    /// Checks a request whose text means nothing against what this worker holds.
    ///
    /// # Errors
    /// The first field that is wrong, with what was given and what is allowed.
    pub fn new(request: SequenceRequest, limits: &Limits) -> Result<Self, SpecError> {
        Self::heard(request, limits, false, |_| Heard::default())
    }

    /// Checks a request against what this worker holds. `opened`: the prompt ends inside the reasoning; `hear` says what the
    /// text of each said token means, in order.
    ///
    /// # Errors
    /// The first field that is wrong, with what was given and what is allowed.
    pub fn heard(
        request: SequenceRequest,
        limits: &Limits,
        opened: bool,
        mut hear: impl FnMut(u32) -> Heard,
    ) -> Result<Self, SpecError> {
        check_ids(&request, limits)?;
        check_numbers(&request)?;
        let (prompt, max_tokens) = (request.prompt.len() as u64, request.max_tokens);
        let tokens = prompt + u64::from(max_tokens);
        if tokens > u64::from(limits.max_context) {
            return Err(SpecError::BeyondWindow { prompt, max_tokens, window: limits.max_context });
        }
        let given = prompt + request.said.len() as u64;
        if given >= limits.kv_tokens() {
            return Err(SpecError::BeyondKv { given, kv_tokens: limits.kv_tokens() });
        }
        let mut reasoning = Reasoning::new(opened);
        for (index, &id) in request.said.iter().enumerate() {
            if request.stop_ids.contains(&id) {
                return Err(SpecError::SaidStopId { index, id });
            }
            let heard = hear(id);
            if heard.stop {
                return Err(SpecError::SaidStopText { index });
            }
            reasoning.said(id, heard.reasoning_open, request.thinking.as_ref());
        }
        Ok(Self { request, reasoning })
    }

    /// The request, checked.
    pub fn request(&self) -> &SequenceRequest {
        &self.request
    }

    /// Prompt tokens.
    pub fn prompt_tokens(&self) -> u32 {
        // Fits: the constructor holds it below the window.
        self.request.prompt.len() as u32
    }

    /// Tokens that are there before the first draw: the prompt and what was said.
    pub(crate) fn given_tokens(&self) -> u32 {
        // Fits: what was said is shorter than max_tokens.
        self.prompt_tokens() + self.request.said.len() as u32
    }

    /// Where the reasoning stands before the first draw.
    pub(crate) fn reasoning(&self) -> Reasoning {
        self.reasoning
    }
}

fn check_ids(request: &SequenceRequest, limits: &Limits) -> Result<(), SpecError> {
    if request.prompt.is_empty() {
        return Err(SpecError::EmptyPrompt);
    }
    let within = |field: &'static str, ids: &[u32]| match ids.iter().enumerate().find(|&(_, &id)| id >= limits.vocab) {
        Some((index, &id)) => Err(SpecError::IdBeyondVocabulary { field, index, id, vocab: limits.vocab }),
        None => Ok(()),
    };
    within("prompt", &request.prompt)?;
    within("said", &request.said)?;
    if let Some(thinking) = &request.thinking {
        if thinking.close_ids.is_empty() {
            return Err(SpecError::NoCloseIds);
        }
        within("thinking.close_ids", &thinking.close_ids)?;
    }
    Ok(())
}

fn check_numbers(request: &SequenceRequest) -> Result<(), SpecError> {
    let Sampling { temperature, top_p, .. } = request.sampling;
    if request.max_tokens == 0 {
        return Err(SpecError::NoMaxTokens);
    }
    if request.said.len() as u64 >= u64::from(request.max_tokens) {
        return Err(SpecError::SaidAll { said: request.said.len(), max_tokens: request.max_tokens });
    }
    if !temperature.is_finite() || temperature < 0.0 {
        return Err(SpecError::Temperature { given: temperature });
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(SpecError::TopP { given: top_p });
    }
    let threshold = request.expert_threshold;
    if !(threshold > 0.5 && threshold <= 1.0) {
        return Err(SpecError::ExpertThreshold { given: threshold });
    }
    if request.logprobs > MAX_TOP_LOGPROBS + 1 {
        return Err(SpecError::Logprobs { given: request.logprobs });
    }
    Ok(())
}

/// Why a request cannot be served here. Each names the field, what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// No prompt.
    #[error("prompt is empty; at least 1 token is needed")]
    EmptyPrompt,
    /// An id that the model has no row for.
    #[error("{field}[{index}] is {id}; the vocabulary has ids 0 to {}", .vocab.saturating_sub(1))]
    IdBeyondVocabulary {
        /// Field that holds the id.
        field: &'static str,
        /// Its index there.
        index: usize,
        /// The id given.
        id: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// A budget without an end.
    #[error("thinking.close_ids is empty; the ids that close the reasoning are needed")]
    NoCloseIds,
    /// Nothing to generate.
    #[error("max_tokens is 0; at least 1 is needed")]
    NoMaxTokens,
    /// Nothing left to generate.
    #[error("said holds {said} tokens; up to {} are allowed (max_tokens - 1)", .max_tokens.saturating_sub(1))]
    SaidAll {
        /// Tokens said.
        said: usize,
        /// Output tokens asked for.
        max_tokens: u32,
    },
    /// What was said had ended.
    #[error("said[{index}] is {id}, one of stop_ids; ids that end no sequence are allowed")]
    SaidStopId {
        /// Its index in what was said.
        index: usize,
        /// The id given.
        id: u32,
    },
    /// What was said had ended.
    #[error("said[{index}] completes one of stop_strings; text that ends no sequence is allowed")]
    SaidStopText {
        /// Index of the token.
        index: usize,
    },
    /// Longer than a sequence may be.
    #[error("prompt ({prompt} tokens) + max_tokens ({max_tokens}) is {}; the window is {window} tokens", .prompt + u64::from(*.max_tokens))]
    BeyondWindow {
        /// Prompt tokens given.
        prompt: u64,
        /// Output tokens asked for.
        max_tokens: u32,
        /// Allowed together.
        window: u32,
    },
    /// Longer than this worker's KV cache.
    #[error("prompt and said have {given} tokens; up to {} are allowed, the KV cache holds {kv_tokens}", .kv_tokens.saturating_sub(1))]
    BeyondKv {
        /// Tokens given.
        given: u64,
        /// What it holds.
        kv_tokens: u64,
    },
    /// Not a temperature.
    #[error("temperature is {given}; a finite number of at least 0 is allowed")]
    Temperature {
        /// The value given.
        given: f32,
    },
    /// Not a share.
    #[error("top_p is {given}; above 0 up to 1 is allowed")]
    TopP {
        /// The value given.
        given: f32,
    },
    /// Not a threshold between one expert and two.
    #[error("expert_threshold is {given}; above 0.5 up to 1 is allowed")]
    ExpertThreshold {
        /// The value given.
        given: f32,
    },
    /// Too many log-probabilities.
    #[error("logprobs is {given}; up to {} is allowed (1 for the chosen token and {MAX_TOP_LOGPROBS} more)", MAX_TOP_LOGPROBS + 1)]
    Logprobs {
        /// The value given.
        given: u32,
    },
}

impl SpecError {
    /// One CamelCase word for logs, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EmptyPrompt => "EmptyPrompt",
            Self::IdBeyondVocabulary { .. } => "IdBeyondVocabulary",
            Self::NoCloseIds => "NoCloseIds",
            Self::NoMaxTokens => "NoMaxTokens",
            Self::SaidAll { .. } => "SaidAll",
            Self::SaidStopId { .. } | Self::SaidStopText { .. } => "SaidEnded",
            Self::BeyondWindow { .. } => "BeyondWindow",
            Self::BeyondKv { .. } => "BeyondKv",
            Self::Temperature { .. } => "InvalidTemperature",
            Self::TopP { .. } => "InvalidTopP",
            Self::ExpertThreshold { .. } => "InvalidExpertThreshold",
            Self::Logprobs { .. } => "InvalidLogprobs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { vocab: 100, max_context: 64, slots: 2, kv_block_tokens: 8, kv_blocks: 6 };

    /// One good request, one change, the error's words.
    fn refused(change: impl FnOnce(&mut SequenceRequest), words: &str) {
        let mut request = SequenceRequest::greedy(vec![1, 2, 3], 4);
        assert!(SequenceSpec::new(request.clone(), &LIMITS).is_ok());
        change(&mut request);
        assert_eq!(SequenceSpec::new(request, &LIMITS).unwrap_err().to_string(), words);
    }

    #[test]
    fn names_the_wrong_field() {
        refused(|r| r.prompt.clear(), "prompt is empty; at least 1 token is needed");
        refused(|r| r.prompt[1] = 100, "prompt[1] is 100; the vocabulary has ids 0 to 99");
        refused(|r| r.max_tokens = 0, "max_tokens is 0; at least 1 is needed");
        refused(|r| r.max_tokens = 62, "prompt (3 tokens) + max_tokens (62) is 65; the window is 64 tokens");
        refused(|r| r.prompt = vec![1; 48], "prompt and said have 48 tokens; up to 47 are allowed, the KV cache holds 48");
        refused(|r| r.max_tokens = u32::MAX, "prompt (3 tokens) + max_tokens (4294967295) is 4294967298; the window is 64 tokens");
        refused(|r| r.sampling.temperature = -0.5, "temperature is -0.5; a finite number of at least 0 is allowed");
        refused(|r| r.sampling.temperature = f32::NAN, "temperature is NaN; a finite number of at least 0 is allowed");
        refused(|r| r.sampling.temperature = f32::INFINITY, "temperature is inf; a finite number of at least 0 is allowed");
        refused(|r| r.sampling.top_p = 0.0, "top_p is 0; above 0 up to 1 is allowed");
        refused(|r| r.sampling.top_p = 1.1, "top_p is 1.1; above 0 up to 1 is allowed");
        refused(|r| r.sampling.top_p = f32::NAN, "top_p is NaN; above 0 up to 1 is allowed");
        refused(|r| r.expert_threshold = 0.5, "expert_threshold is 0.5; above 0.5 up to 1 is allowed");
        refused(|r| r.expert_threshold = 1.5, "expert_threshold is 1.5; above 0.5 up to 1 is allowed");
        refused(|r| r.logprobs = 22, "logprobs is 22; up to 21 is allowed (1 for the chosen token and 20 more)");
        refused(|r| r.said = vec![1, 100], "said[1] is 100; the vocabulary has ids 0 to 99");
        refused(|r| r.said = vec![1; 4], "said holds 4 tokens; up to 3 are allowed (max_tokens - 1)");
        let ended = |r: &mut SequenceRequest| (r.said, r.stop_ids) = (vec![1, 9], vec![9]);
        refused(ended, "said[1] is 9, one of stop_ids; ids that end no sequence are allowed");
        let budget = |close_ids| Some(ThinkingBudget { tokens: 5, close_ids });
        refused(|r| r.thinking = budget(vec![]), "thinking.close_ids is empty; the ids that close the reasoning are needed");
        refused(|r| r.thinking = budget(vec![1, 300]), "thinking.close_ids[1] is 300; the vocabulary has ids 0 to 99");
    }

    #[test]
    fn what_was_said_must_not_have_ended_by_its_text() {
        let request = SequenceRequest { said: vec![1, 2, 3], ..SequenceRequest::greedy(vec![1], 4) };
        let hear = |id| Heard { stop: id == 2, reasoning_open: false };
        let error = SequenceSpec::heard(request, &LIMITS, false, hear).unwrap_err();
        assert_eq!(error.to_string(), "said[1] completes one of stop_strings; text that ends no sequence is allowed");
        assert_eq!(error.reason(), "SaidEnded");
    }
}
