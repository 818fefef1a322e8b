//! The tensors of a checkpoint, each in its place.

use crate::math::{transposed, Norm};
use crate::safetensors::Tensor;
use std::collections::HashMap;

/// A low-rank pair, both halves turned to (out, in) like all other matrices.
pub struct Pair {
    pub down: Vec<f32>,
    pub up: Vec<f32>,
}

pub struct TimeMix {
    pub ln1: Norm,
    pub mixes: [Vec<f32>; 6], // r w k v a g
    pub receptance: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub output: Vec<f32>,
    pub w0: Vec<f32>,
    pub w: Pair,
    pub a0: Vec<f32>,
    pub a: Pair,
    pub residual: Option<(Vec<f32>, Pair)>, // v0 and its pair; layer 0 has none
    pub g: Pair,
    pub k_k: Vec<f32>,
    pub k_a: Vec<f32>,
    pub r_k: Vec<f32>,
    pub ln_x: Norm,
}

pub struct ChannelMix {
    pub ln2: Norm,
    pub x_k: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
}

/// Tensors of the file that were not taken yet.
pub struct Checkpoint(pub HashMap<String, Tensor>);

impl Checkpoint {
    pub fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D], String> {
        let tensor = self.0.get(name).ok_or_else(|| lacking(name))?;
        tensor.shape[..].try_into().map_err(|_| format!("{name} has shape {:?}, not {D} axes", tensor.shape))
    }

    pub fn take(&mut self, name: &str) -> Result<Vec<f32>, String> {
        Ok(self.0.remove(name).ok_or_else(|| lacking(name))?.data)
    }

    pub fn norm(&mut self, name: &str) -> Result<Norm, String> {
        Ok(Norm { weight: self.take(&format!("{name}.weight"))?, bias: self.take(&format!("{name}.bias"))? })
    }

    /// Stored as (in, rank) and (rank, out).
    fn pair(&mut self, at: &str, letter: char) -> Result<Pair, String> {
        let [down, up] = [1, 2].map(|i| format!("{at}{letter}{i}"));
        let ([_, rank], [_, out]) = (self.shape(&down)?, self.shape(&up)?);
        Ok(Pair { down: transposed(&self.take(&down)?, rank), up: transposed(&self.take(&up)?, out) })
    }

    pub fn time_mix(&mut self, layer: usize) -> Result<TimeMix, String> {
        let block = format!("blocks.{layer}.");
        let at = format!("{block}att.");
        let residual = if layer == 0 { None } else { Some((self.take(&format!("{at}v0"))?, self.pair(&at, 'v')?)) };
        let mut mixes: [Vec<f32>; 6] = Default::default();
        for (mix, letter) in mixes.iter_mut().zip("rwkvag".chars()) {
            *mix = self.take(&format!("{at}x_{letter}"))?;
        }
        Ok(TimeMix {
            ln1: self.norm(&format!("{block}ln1"))?,
            mixes,
            receptance: self.take(&format!("{at}receptance.weight"))?,
            key: self.take(&format!("{at}key.weight"))?,
            value: self.take(&format!("{at}value.weight"))?,
            output: self.take(&format!("{at}output.weight"))?,
            w0: self.take(&format!("{at}w0"))?,
            w: self.pair(&at, 'w')?,
            a0: self.take(&format!("{at}a0"))?,
            a: self.pair(&at, 'a')?,
            residual,
            g: self.pair(&at, 'g')?,
            k_k: self.take(&format!("{at}k_k"))?,
            k_a: self.take(&format!("{at}k_a"))?,
            r_k: self.take(&format!("{at}r_k"))?,
            ln_x: self.norm(&format!("{at}ln_x"))?,
        })
    }

    pub fn channel_mix(&mut self, layer: usize) -> Result<ChannelMix, String> {
        let block = format!("blocks.{layer}.");
        Ok(ChannelMix {
            ln2: self.norm(&format!("{block}ln2"))?,
            x_k: self.take(&format!("{block}ffn.x_k"))?,
            key: self.take(&format!("{block}ffn.key.weight"))?,
            value: self.take(&format!("{block}ffn.value.weight"))?,
        })
    }
}

fn lacking(name: &str) -> String {
    format!("the checkpoint has no tensor {name}, which RWKV-7 needs")
}
