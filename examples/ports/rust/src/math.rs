//! The few operations that the model is made of. Sums of norms run in f64, those of products in sixteen f32 lanes.

pub struct Norm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

const LANES: usize = 16;

pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// A new array, each number computed from its index and the number at it.
pub fn each(x: &[f32], f: impl Fn(usize, f32) -> f32) -> Vec<f32> {
    x.iter().enumerate().map(|(j, &x)| f(j, x)).collect()
}

/// Sum of products; the lanes are what lets the compiler use vector instructions.
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// x (T, I) times a matrix (O, I) -> (T, O). All tokens share one pass over the matrix.
pub fn linear(x: &[f32], w: &[f32], tokens: usize) -> Vec<f32> {
    let inputs = x.len() / tokens;
    let outputs = w.len() / inputs;
    let mut z = vec![0.0; tokens * outputs];
    for (o, row) in w.chunks_exact(inputs).enumerate() {
        for (t, x) in x.chunks_exact(inputs).enumerate() {
            z[t * outputs + o] = dot(x, row);
        }
    }
    z
}

/// Normalises every group of `size` numbers; weight and bias run over the channels of a token.
pub fn norm(x: &[f32], by: &Norm, size: usize, eps: f64) -> Vec<f32> {
    let mut z = Vec::with_capacity(x.len());
    for group in x.chunks_exact(size) {
        let mean = group.iter().map(|&x| f64::from(x)).sum::<f64>() / size as f64;
        let variance = group.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / size as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        let begin = z.len() % by.weight.len();
        let (weight, bias) = (&by.weight[begin..], &by.bias[begin..]);
        z.extend(group.iter().zip(weight).zip(bias).map(|((&x, w), b)| ((f64::from(x) - mean) * scale) as f32 * w + b));
    }
    z
}

/// x one token earlier, (T, C): row 0 is what the call before left behind.
pub fn shifted(x: &[f32], before: &[f32]) -> Vec<f32> {
    [before, &x[..x.len() - before.len()]].concat()
}

/// Token shift: `share` (C) is the part of the previous token.
pub fn lerp(x: &[f32], previous: &[f32], share: &[f32]) -> Vec<f32> {
    each(x, |j, x| x + (previous[j] - x) * share[j % share.len()])
}

/// Every group of `size` numbers divided by its Euclidean norm, or by `floor` where that is larger.
pub fn unit(x: &[f32], size: usize, floor: f32) -> Vec<f32> {
    let scaled = |group: &[f32]| {
        let length = dot(group, group).sqrt().max(floor);
        each(group, |_, x| x / length)
    };
    x.chunks_exact(size).flat_map(scaled).collect()
}

/// (rows, columns) -> (columns, rows).
pub fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| x.iter().skip(column).step_by(columns)).copied().collect()
}
