//! The harness's protocol, version 1: a request a line on stdin, an answer a line on stdout. See docs/protocol.md.

use crate::base64;
use crate::json::{listed, quoted, Json};
use crate::model::{self, Bug, Logits, Model, State};
use crate::safetensors;
use crate::trace::{Named, Trace};
use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

const UNKNOWN_METHOD: i32 = -32601;
const WRONG_PARAMETERS: i32 = -32602;
const FAILED: i32 = -32000;

const INLINE: usize = 1 << 20; // bytes; larger arrays go through a file, which is faster than base64
const BYTES: usize = 256; // vocabulary of the models whose tokens are bytes

/// Why a request is not served: a code of JSON-RPC and words.
struct Refusal(i32, String);

/// Anything that goes wrong while a request is served, unless said otherwise.
impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Refusal(FAILED, message)
    }
}

/// The text of a JSON value, or why there is none.
type Answer = Result<String, Refusal>;

struct Port {
    version: String,
    bug: (String, Bug),
    model: Option<Model>,
    scratch: PathBuf,
    files: usize,
    states: HashMap<usize, State>,
    handles: usize,
}

/// Answers until stdin ends or `shutdown` comes.
pub fn serve(version: &str, bug: (String, Bug)) -> Result<(), String> {
    let mut port = Port {
        version: version.into(),
        bug,
        model: None,
        scratch: PathBuf::new(),
        files: 0,
        states: HashMap::new(),
        handles: 0,
    };
    for line in io::stdin().lock().lines() {
        let request = Json::parse(&line.map_err(|error| error.to_string())?)?;
        let (id, method) = (request.get("id")?.integer()?, request.get("method")?.text()?);
        let outcome = match port.answer(method, request.get("params")?) {
            Ok(result) => format!(r#""result":{result}"#),
            Err(Refusal(code, message)) => format!(r#""error":{{"code":{code},"message":{}}}"#, quoted(&message)),
        };
        let mut out = io::stdout().lock();
        writeln!(out, r#"{{"jsonrpc":"2.0","id":{id},{outcome}}}"#)
            .and_then(|()| out.flush())
            .map_err(|e| e.to_string())?;
        if method == "shutdown" {
            break;
        }
    }
    Ok(())
}

impl Port {
    fn answer(&mut self, method: &str, params: &Json) -> Answer {
        match method {
            "hello" => Ok(self.hello()),
            "load" => self.load(params),
            "forward" => self.forward(params),
            "generate" => self.generate(params),
            "release" => self.release(params),
            "export_state" => self.export_state(params),
            "import_state" => self.import_state(params),
            "encode" => self.encode(params),
            "decode" => self.decode(params),
            "shutdown" => Ok("{}".into()),
            _ => Err(Refusal(UNKNOWN_METHOD, format!("there is no method {method}"))),
        }
    }

    fn hello(&self) -> String {
        let note = match &self.bug {
            (_, Bug::None) => String::new(),
            (name, _) => quoted(&format!("the planted mistake {name} is switched on")),
        };
        let abilities = listed(["logits-all", "state", "trace", "generate", "tokenizer"].map(quoted));
        let trace = listed(model::names().iter().map(|name| quoted(name)));
        format!(
            r#"{{"protocol":1,"name":"rwkv7-rs","version":{},"abilities":{abilities},"attention":"sequential","trace":{trace},"notes":[{note}]}}"#,
            quoted(&self.version)
        )
    }

    fn load(&mut self, params: &Json) -> Answer {
        let dtype = params.get("dtype")?.text()?;
        if dtype != "f32" {
            return Err(Refusal(WRONG_PARAMETERS, format!("this port computes in f32, not {dtype}")));
        }
        let model = Model::new(safetensors::read(params.get("path")?.text()?)?, self.bug.1)?;
        self.scratch = params.get("scratch")?.text()?.into();
        let z = &model.sizes;
        let sizes = [
            ("vocab_size", z.vocab),
            ("n_embd", z.width),
            ("n_layer", z.layers),
            ("n_head", z.heads),
            ("head_size", z.head),
            ("n_ffn", z.inner),
        ];
        let answer = object(sizes.map(|(name, size)| (name, size.to_string())));
        self.model = Some(model);
        Ok(answer)
    }

    fn forward(&mut self, params: &Json) -> Answer {
        let tokens = params.get("tokens")?.integers()?;
        let logits = match params.get("logits")?.text()? {
            "none" => Logits::None,
            "last" => Logits::Last,
            "all" => Logits::All,
            other => return Err(Refusal(WRONG_PARAMETERS, format!("logits are none, last or all, not {other}"))),
        };
        let names: Vec<&str> = params.get("trace")?.list()?.iter().map(Json::text).collect::<Result<_, _>>()?;
        let mut state = match params.get("state")? {
            Json::Null => self.model()?.zero(),
            handle => self.kept(handle)?.clone(),
        };
        let wanted = |name: &str| names.contains(&name);
        let mut trace = Trace { wanted: &wanted, found: Vec::new() };
        let model = self.model()?;
        let vocab = model.sizes.vocab;
        let out = model.forward(&tokens, &mut state, logits, &mut trace);
        let mut answer = Vec::new();
        if let (Some(data), true) = (out, params.get("fetch")?.flag()?) {
            answer.push(("logits", self.array(&[data.len() / vocab, vocab], &data)?));
        }
        if params.get("keep")?.flag()? {
            answer.push(("state", self.keep(state)));
        }
        if !names.is_empty() {
            let found = trace.found.iter().map(|Named { name, shape, data }| Ok((name, self.array(shape, data)?)));
            answer.push(("trace", object(found.collect::<Result<Vec<_>, Refusal>>()?)));
        }
        Ok(object(answer))
    }

    fn generate(&mut self, params: &Json) -> Answer {
        let (stop, most) = (params.get("stop")?.integers()?, params.get("max_new_tokens")?.integer()?);
        let mut fed = params.get("tokens")?.integers()?;
        let model = self.model()?;
        let mut trace = Trace { wanted: &|_| false, found: Vec::new() };
        let (mut state, mut found) = (model.zero(), Vec::new());
        while found.len() < most {
            let logits = model.forward(&fed, &mut state, Logits::Last, &mut trace).unwrap_or_default();
            let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
            if stop.contains(&best) {
                break;
            }
            found.push(best);
            fed = vec![best];
        }
        Ok(object([("tokens", listed(found))]))
    }

    fn release(&mut self, params: &Json) -> Answer {
        let handle = params.get("state")?.integer()?;
        self.states.remove(&handle).map(|_| "{}".into()).ok_or_else(|| no_state(handle))
    }

    fn export_state(&mut self, params: &Json) -> Answer {
        let state = self.kept(params.get("state")?)?.clone();
        let parts = state.parts(&self.model()?.sizes);
        let rows = parts.map(|(name, shape, data)| Ok((name, self.array(&shape, &data)?)));
        Ok(object(rows.into_iter().collect::<Result<Vec<_>, Refusal>>()?))
    }

    fn import_state(&mut self, params: &Json) -> Answer {
        let mut state = self.model()?.zero();
        for (name, into) in [("att_shift", &mut state.att), ("wkv", &mut state.wkv), ("ffn_shift", &mut state.ffn)] {
            let bytes = base64::decode(params.get(name)?.get("base64")?.text()?)?;
            if bytes.len() != into.len() * 4 {
                let message = format!("{name} has {} bytes, where this model has {}", bytes.len(), into.len() * 4);
                return Err(Refusal(WRONG_PARAMETERS, message));
            }
            *into = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        }
        Ok(object([("state", self.keep(state))]))
    }

    fn encode(&mut self, params: &Json) -> Answer {
        self.check_bytes()?;
        Ok(object([("tokens", listed(base64::decode(params.get("bytes")?.text()?)?))]))
    }

    fn decode(&mut self, params: &Json) -> Answer {
        self.check_bytes()?;
        let tokens = params.get("tokens")?.integers()?;
        let bytes = tokens.into_iter().map(|token| token as u8).collect::<Vec<_>>();
        Ok(object([("bytes", quoted(&base64::encode(&bytes)))]))
    }

    fn check_bytes(&self) -> Result<(), Refusal> {
        match self.model()?.sizes.vocab {
            BYTES => Ok(()),
            other => Err(format!("no tokenizer for a vocabulary of {other}: only bytes").into()),
        }
    }

    fn model(&self) -> Result<&Model, Refusal> {
        self.model.as_ref().ok_or_else(|| "no model is loaded".to_string().into())
    }

    fn kept(&self, handle: &Json) -> Result<&State, Refusal> {
        let handle = handle.integer()?;
        self.states.get(&handle).ok_or_else(|| no_state(handle))
    }

    fn keep(&mut self, state: State) -> String {
        self.handles += 1;
        self.states.insert(self.handles, state);
        self.handles.to_string()
    }

    fn array(&mut self, shape: &[usize], data: &[f32]) -> Answer {
        let bytes: Vec<u8> = data.iter().flat_map(|number| number.to_le_bytes()).collect();
        let shape = listed(shape);
        if bytes.len() <= INLINE {
            return Ok(format!(r#"{{"dtype":"f32","shape":{shape},"base64":"{}"}}"#, base64::encode(&bytes)));
        }
        self.files += 1;
        let file = format!("array-{}.bin", self.files);
        std::fs::write(self.scratch.join(&file), bytes).map_err(|error| format!("{file}: {error}"))?;
        Ok(format!(r#"{{"dtype":"f32","shape":{shape},"file":"{file}","offset":0}}"#))
    }
}

fn no_state(handle: usize) -> Refusal {
    Refusal(WRONG_PARAMETERS, format!("there is no state {handle}"))
}

/// An object as JSON writes it, of values that are JSON already.
fn object<K: AsRef<str>>(entries: impl IntoIterator<Item = (K, String)>) -> String {
    let rows: Vec<String> =
        entries.into_iter().map(|(key, value)| format!("{}:{value}", quoted(key.as_ref()))).collect();
    format!("{{{}}}", rows.join(","))
}
