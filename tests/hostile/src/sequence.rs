//! One sequence, played from its script.

use std::sync::Arc;
use std::time::Duration;

use m1_proto::worker::generate_event::Event;
use m1_proto::worker::{FinishReason, Finished, GenerateEvent, GenerateRequest, RawLogits, Routing, TokenLogprobs, Tokens};
use tokio::sync::mpsc;
use tonic::Status;

use crate::script::{self, Step};
use crate::worker::{EXPERTS, LAYERS, Stage, TOP_K};

/// Ids of plain words in the demo's vocabulary.
const WORDS: [u32; 8] = [313, 361, 364, 376, 389, 413, 419, 440];

/// One under way.
pub struct Sequence {
    stage: Arc<Stage>,
    request: GenerateRequest,
    sender: mpsc::Sender<Result<GenerateEvent, Status>>,
    output: u32,
}

/// Nothing more is said.
enum Over {
    /// The script says so.
    Done,
    /// Nobody listens.
    Gone,
}

impl Sequence {
    /// Before its first step.
    pub fn new(stage: Arc<Stage>, request: GenerateRequest, sender: mpsc::Sender<Result<GenerateEvent, Status>>) -> Self {
        let output = u32::try_from(request.said.len()).unwrap_or(u32::MAX);
        Self { stage, request, sender, output }
    }

    /// Does all steps; whether it ended because nobody listens any more.
    pub async fn play(mut self, steps: Vec<Step>) -> bool {
        for step in steps {
            match self.step(step).await {
                Ok(()) => {}
                Err(Over::Done) => return false,
                Err(Over::Gone) => return true,
            }
        }
        false
    }

    async fn step(&mut self, step: Step) -> Result<(), Over> {
        match step {
            Step::Ok => {
                while self.output < self.request.max_tokens {
                    self.tokens(1).await?;
                    self.pause(Duration::from_millis(self.stage.shape.gap_ms)).await?;
                }
                self.finish().await
            }
            Step::Tokens(count) => {
                for _ in 0..count {
                    self.tokens(1).await?;
                    self.pause(Duration::from_millis(self.stage.shape.gap_ms)).await?;
                }
                Ok(())
            }
            Step::Flood(count) => {
                for _ in 0..count {
                    self.tokens(1).await?;
                }
                Ok(())
            }
            Step::Burst(count, messages) => {
                for _ in 0..messages {
                    self.tokens(count).await?;
                }
                Ok(())
            }
            Step::Wait(time) => self.pause(time).await,
            Step::Hold | Step::Mute => {
                self.sender.closed().await;
                Err(Over::Gone)
            }
            Step::Break(code, length) => {
                let _ = self.sender.send(Err(script::status(code, length))).await;
                Err(Over::Done)
            }
            Step::Finish => self.finish().await,
            Step::Fail => {
                let mut finished = self.finished(FinishReason::FinishError);
                finished.error_reason = "Scripted".to_owned();
                finished.error_message = script::status(2, 9000).message().to_owned();
                self.send(Event::Finished(finished)).await
            }
            Step::Miscount => {
                let mut finished = self.finished(FinishReason::FinishLength);
                let first = finished.routing.as_mut().and_then(|routing| routing.expert_tokens.first_mut());
                first.into_iter().for_each(|count| *count = u64::MAX);
                finished.prompt_tokens = u32::MAX;
                finished.output_tokens = u32::MAX;
                self.send(Event::Finished(finished)).await
            }
            Step::Empty => self.sender.send(Ok(GenerateEvent::default())).await.map_err(|_| Over::Gone),
            Step::Logits => {
                let logits = RawLogits { position: 0, rows: 1 << 20, values: vec![0; 1 << 20].into() };
                self.send(Event::RawLogits(logits)).await
            }
            Step::BadId => self.send(Event::Tokens(Tokens { ids: vec![u32::MAX, 1 << 30], logprobs: Vec::new() })).await,
            Step::Exit => std::process::exit(9),
            Step::End | Step::Garble(_) => Err(Over::Done),
        }
    }

    async fn pause(&self, time: Duration) -> Result<(), Over> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.sender.closed() => Err(Over::Gone),
        }
    }

    async fn tokens(&mut self, count: u32) -> Result<(), Over> {
        let mut out = Tokens::default();
        for _ in 0..count {
            let id = WORDS[self.output as usize % WORDS.len()];
            self.output += 1;
            out.ids.push(id);
            if self.request.logprobs > 0 {
                out.logprobs.push(TokenLogprobs::new(-0.5, (1..self.request.logprobs).map(|n| (id + n, -0.5))));
            }
        }
        self.send(Event::Tokens(out)).await
    }

    async fn finish(&mut self) -> Result<(), Over> {
        self.send(Event::Finished(self.finished(FinishReason::FinishLength))).await
    }

    async fn send(&self, event: Event) -> Result<(), Over> {
        self.sender.send(Ok(GenerateEvent { event: Some(event) })).await.map_err(|_| Over::Gone)
    }

    fn finished(&self, reason: FinishReason) -> Finished {
        let prompt_tokens = u32::try_from(self.request.prompt.len()).unwrap_or(u32::MAX);
        let routing = route(u64::from(prompt_tokens) + u64::from(self.output.saturating_sub(1)));
        let counted = self.stage.routed(&self.request.router, &routing);
        let routing = if self.request.omit_routing { Routing::default() } else { routing };
        let routing = Some(Routing { layers: LAYERS, experts: EXPERTS, top_k: TOP_K, ..routing });
        Finished { reason: reason.into(), prompt_tokens, output_tokens: self.output, routing, counted, ..Finished::default() }
    }
}

/// Counts of so many tokens, dealt out in turn in every layer.
fn route(tokens: u64) -> Routing {
    let uses = tokens * u64::from(TOP_K);
    let experts = u64::from(EXPERTS);
    let layer = (0..experts).map(|expert| uses / experts + u64::from(expert < uses % experts));
    let expert_tokens: Vec<u64> = (0..LAYERS).flat_map(|_| layer.clone()).collect();
    let zero = vec![0; expert_tokens.len()];
    Routing {
        tokens,
        layers: LAYERS,
        experts: EXPERTS,
        top_k: TOP_K,
        executed: uses * u64::from(LAYERS),
        expert_weight: expert_tokens.iter().map(|count| *count as f32 * 0.5).collect(),
        expert_tokens,
        expert_skipped: zero.clone(),
        expert_lost: zero,
        ..Routing::default()
    }
}
