//! Named tensors that somebody asked for, recorded on the way.

pub struct Named {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Which tensors are wanted, and those found so far, in the order of evaluation.
pub struct Trace<'a> {
    pub wanted: &'a dyn Fn(&str) -> bool,
    pub found: Vec<Named>,
}

/// A place in the model, `blocks.3.att.`, whose tensors pass through `keep`.
pub struct Scope<'a, 'b> {
    pub trace: &'a mut Trace<'b>,
    pub at: String,
    pub tokens: usize,
}

impl Scope<'_, '_> {
    pub fn wants(&self, name: &str) -> bool {
        (self.trace.wanted)(&format!("{}{name}", self.at))
    }

    /// Records a tensor (T, ...) if it is wanted, and hands it on.
    pub fn keep(&mut self, name: &str, data: Vec<f32>) -> Vec<f32> {
        if self.wants(name) {
            let shape = vec![self.tokens, data.len() / self.tokens];
            self.found(name, shape, data.clone());
        }
        data
    }

    pub fn found(&mut self, name: &str, shape: Vec<usize>, data: Vec<f32>) {
        let name = format!("{}{name}", self.at);
        self.trace.found.push(Named { name, shape, data });
    }
}
