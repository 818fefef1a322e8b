//! Reads a safetensors file: 8 bytes of length, a header of JSON, raw little-endian numbers.

use crate::json::Json;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Every tensor of a file as f32, whatever it is stored in. Read tensor by tensor: memory holds the file once.
pub fn read(path: &str) -> Result<HashMap<String, Tensor>, String> {
    let told = |error: &dyn std::fmt::Display| format!("{path}: {error}");
    let mut file = File::open(path).map_err(|e| told(&e))?;
    let size = file.metadata().map_err(|e| told(&e))?.len();
    let length = read_at(&mut file, 0, 8).map_err(|e| told(&e))?;
    let length = u64::from_le_bytes(length.try_into().expect("8 bytes were read"));
    if length > size {
        return Err(told(&"no safetensors file: its header is longer than the file"));
    }
    let header = read_at(&mut file, 8, length as usize).map_err(|e| told(&e))?;
    let header = Json::parse(&String::from_utf8_lossy(&header)).map_err(|e| told(&e))?;
    let rows = header.entries()?.iter().filter(|(name, _)| name != "__metadata__");
    rows.map(|(name, row)| {
        let tensor = read_tensor(&mut file, 8 + length, row).map_err(|e| told(&format!("{name}: {e}")))?;
        Ok((name.clone(), tensor))
    })
    .collect()
}

fn read_tensor(file: &mut File, base: u64, row: &Json) -> Result<Tensor, String> {
    let shape = row.get("shape")?.integers()?;
    let [begin, end] = row.get("data_offsets")?.integers()?[..] else {
        return Err("data_offsets are not two numbers".into());
    };
    let raw = read_at(file, base + begin as u64, end.saturating_sub(begin)).map_err(|e| e.to_string())?;
    let data: Vec<f32> = match row.get("dtype")?.text()? {
        "F32" => raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        "BF16" => halves(&raw).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
        "F16" => halves(&raw).map(half_to_single).collect(),
        other => return Err(format!("stored as {other}; this port reads F32, BF16, F16")),
    };
    if data.len() != shape.iter().product() {
        return Err(format!("{} numbers are not of shape {shape:?}", data.len()));
    }
    Ok(Tensor { shape, data })
}

fn read_at(file: &mut File, position: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn halves(raw: &[u8]) -> impl Iterator<Item = u16> + '_ {
    raw.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn half_to_single(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let (exponent, fraction) = (bits >> 10 & 0x1f, bits & 0x3ff);
    let size = match exponent {
        0 => fraction as f32 / 16_777_216.0, // zero and subnormals: 2^-24 a step, exact in f32
        0x1f => f32::from_bits(0x7f80_0000 | fraction << 13), // infinity, NaN
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13), // the bias grows from 15 to 127
    };
    if bits & 0x8000 == 0 {
        size
    } else {
        -size
    }
}
