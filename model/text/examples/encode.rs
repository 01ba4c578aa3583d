//! How long a text of a million tokens takes, here and in the `tokenizers` crate: `cargo run --release -p m1-text --example encode -- FOLDER [TOKENS]`.
//! FOLDER holds tokenizer.json and tokenizer_config.json; the text is the words of this repository's documents, over and over.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use m1_text::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name the folder of a tokenizer")?);
    let tokens: usize = arguments.next().map_or(Ok(1_000_000), |tokens| tokens.parse())?;
    let ours = Tokenizer::open(&folder)?;
    let mut library = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| error.to_string())?;
    library.set_encode_special_tokens(true);
    let words =
        [include_str!("../../../ARCHITECTURE.md"), include_str!("../../../CONTRIBUTING.md"), include_str!("../../../README.md")];
    let unit = words.concat();
    let each = ours.encode(&unit)?.len();
    let text = unit.repeat(tokens.div_ceil(each));
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (ids, time) = timed(|| ours.encode(&text));
        here.push(time);
        let (encoding, time) = timed(|| library.encode_fast(text.as_str(), false));
        there.push(time);
        assert_eq!(ids?, encoding.map_err(|error| error.to_string())?.get_ids());
    }
    let (here, there) = (here.into_iter().min().unwrap_or_default(), there.into_iter().min().unwrap_or_default());
    let count = ours.encode(&text)?.len();
    println!("{count} tokens, {} bytes", text.len());
    println!("here   {:8.1} ms", here.as_secs_f64() * 1e3);
    println!("crate  {:8.1} ms", there.as_secs_f64() * 1e3);
    println!("ratio  {:8.3}", here.as_secs_f64() / there.as_secs_f64());
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}
