//! Floating-point operations of one token, two per multiply-add. `context` is the number of tokens that a softmax
//! layer attends to. Results are f64: at a long context they pass 2^53 only where nobody reads single digits.

use crate::architecture::{Architecture, AttentionKind};

impl Architecture {
    /// Matrix products with weights, the head included: `2 * (active + V*H)`.
    pub fn matmul_flops_per_token(&self) -> f64 {
        2.0 * (self.active_parameters() + self.embedding_parameters()) as f64
    }

    /// Lightning attention as a recurrence: five per state element (decay, outer product, sum; and two for `q S`).
    pub fn lightning_flops_recurrent(&self) -> f64 {
        5.0 * self.state_elements()
    }

    /// Lightning attention in blocks of `block` tokens: four per state element, and `2 * block * head_dim` per head for the
    /// causal half of the products inside the block.
    pub fn lightning_flops_in_blocks(&self, block: usize) -> f64 {
        let heads = (self.count(AttentionKind::Lightning) * self.heads) as f64;
        4.0 * self.state_elements() + heads * 2.0 * (block * self.head_dim) as f64
    }

    /// Softmax attention over `context` tokens: `4 * N` per layer and token attended to.
    pub fn softmax_flops_per_token(&self, context: u64) -> f64 {
        let layers = self.count(AttentionKind::Softmax) as f64;
        4.0 * layers * self.attention_dim() as f64 * context as f64
    }

    /// One decoded token at this context.
    pub fn flops_per_token(&self, context: u64) -> f64 {
        self.matmul_flops_per_token() + self.lightning_flops_recurrent() + self.softmax_flops_per_token(context)
    }

    /// One expert of one layer applied to one token.
    pub fn expert_flops_per_token(&self) -> f64 {
        2.0 * self.expert_parameters() as f64
    }

    fn state_elements(&self) -> f64 {
        (self.state_bytes_per_sequence().0 / 4) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn giga(flops: f64, digits: usize) -> String {
        format!("{:.*}", digits, flops / 1e9)
    }

    #[test]
    fn parts_of_minimax_m1() {
        let m1 = Architecture::minimax_m1();
        assert_eq!(giga(m1.matmul_flops_per_token(), 2), "94.35");
        assert_eq!(giga(m1.lightning_flops_recurrent(), 3), "0.367");
        assert_eq!(giga(m1.lightning_flops_in_blocks(256), 2), "0.59");
        assert_eq!(m1.softmax_flops_per_token(1), 327_680.0);
        assert_eq!(m1.expert_flops_per_token(), 339_738_624.0);
    }

    #[test]
    fn growth_with_context_beside_the_softmax_twin() {
        let m1 = Architecture::minimax_m1();
        let twin = m1.softmax_twin();
        for (context, ours, theirs) in
            [(8_192, "97", "96"), (65_536, "116", "247"), (100_000, "127", "337"), (1_000_000, "422", "2696")]
        {
            assert_eq!(giga(m1.flops_per_token(context), 0), ours, "at {context}");
            assert_eq!(giga(twin.flops_per_token(context), 0), theirs, "twin at {context}");
        }
        assert_eq!(giga(m1.flops_per_token(100_000), 1), "127.5");
    }
}
