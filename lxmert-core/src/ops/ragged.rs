//! Batches without padding: the real rows of all sentences (or images), one after another, so that nothing is computed
//! for padding.

use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::Arc;

/// The value added to the score of a padding key if attention is computed on padded rows; the original code
/// (airsplay/lxmert) uses this finite number instead of −∞.
const MASKED: f32 = -10_000.0;

/// The positions of the real rows of a padded `[batch, length, …]` tensor. Clones share it.
#[derive(Debug, Clone)]
pub struct Ragged(Arc<Places>);

#[derive(Debug)]
struct Places {
    batch: usize,
    length: usize,
    /// Item `i` has the ragged rows `starts[i]..starts[i + 1]`.
    starts: Vec<usize>,
    /// The padded row of each ragged row.
    rows: Vec<u32>,
    /// [`Ragged::on`], once it was asked for.
    #[cfg(feature = "cuda")]
    uploaded: std::sync::OnceLock<[Tensor; 2]>,
}

impl Ragged {
    fn of(batch: usize, length: usize, starts: Vec<usize>, rows: Vec<u32>) -> Self {
        Self(Arc::new(Places {
            batch,
            length,
            starts,
            rows,
            #[cfg(feature = "cuda")]
            uploaded: Default::default(),
        }))
    }

    /// [`starts`](Self::starts) and [`rows`](Self::rows) on a device, u32, uploaded once.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
        if let Some(uploaded) = self.0.uploaded.get().filter(|uploaded| uploaded[0].device().same_device(device)) {
            return Ok(uploaded.clone());
        }
        let starts = self.0.starts.iter().map(|start| *start as u32);
        let uploaded = [Self::index(starts, device)?, Self::index(self.0.rows.iter().copied(), device)?];
        Ok(self.0.uploaded.get_or_init(|| uploaded).clone())
    }

    /// No padding: every row is real.
    pub fn dense(batch: usize, length: usize) -> Self {
        let starts = (0..=batch).map(|i| i * length).collect();
        Self::of(batch, length, starts, (0..(batch * length) as u32).collect())
    }

    /// From a mask of any element type, `[batch, length]`, 1 for real rows and 0 for padding. An item that consists of
    /// padding only keeps all its rows: the original adds the same number to all of its attention scores, which changes
    /// no probability.
    ///
    /// # Errors
    /// Returns an error if the mask has another rank, or values other than 0 and 1.
    pub fn of_mask(mask: &Tensor) -> Result<Self> {
        let (batch, length) = mask.dims2()?;
        let mask: Vec<f32> = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if let Some(value) = mask.iter().find(|&&m| m != 0.0 && m != 1.0) {
            bail!("an attention mask holds 1 for real rows and 0 for padding, not {value}");
        }
        let (mut starts, mut rows) = (vec![0], Vec::with_capacity(mask.len()));
        for item in 0..batch {
            let mask = &mask[item * length..][..length];
            let empty = mask.iter().all(|m| *m == 0.0);
            rows.extend((0..length).filter(|&i| empty || mask[i] == 1.0).map(|i| (item * length + i) as u32));
            starts.push(rows.len());
        }
        Ok(Self::of(batch, length, starts, rows))
    }

    /// Number of items.
    pub fn batch(&self) -> usize {
        self.0.batch
    }

    /// Number of rows of an item, padding included.
    pub fn length(&self) -> usize {
        self.0.length
    }

    /// Number of real rows of all items.
    pub fn count(&self) -> usize {
        self.0.rows.len()
    }

    /// Whether no row is padding.
    pub fn is_dense(&self) -> bool {
        self.count() == self.0.batch * self.0.length
    }

    /// The padded row of each ragged row, counted over the whole batch.
    pub fn rows(&self) -> &[u32] {
        &self.0.rows
    }

    /// Item `i` has the ragged rows `starts[i]..starts[i + 1]`.
    pub fn starts(&self) -> &[usize] {
        &self.0.starts
    }

    /// Only the first row of every item.
    pub fn first_rows(&self) -> Self {
        let Places { batch, length, .. } = *self.0;
        let rows = (0..batch).map(|i| (i * length) as u32).collect();
        Self::of(batch, length, (0..=batch).collect(), rows)
    }

    /// Item `index`, repeated `times` times.
    ///
    /// # Errors
    /// Returns an error if there is no such item.
    pub fn repeat(&self, index: usize, times: usize) -> Result<Self> {
        let Some([start, end]) = self.0.starts.get(index..index + 2) else {
            bail!("item {index} of a batch of {}", self.0.batch);
        };
        let (length, count) = (self.0.length, end - start);
        let own = self.0.rows[*start..*end].iter().map(|row| *row as usize - index * length);
        let places: Vec<usize> = own.collect();
        let rows = (0..times).flat_map(|item| places.iter().map(move |place| (item * length + place) as u32)).collect();
        let starts = (0..=times).map(|i| i * count).collect();
        Ok(Self::of(times, length, starts, rows))
    }

    fn index(values: impl Iterator<Item = u32>, device: &Device) -> Result<Tensor> {
        let values: Vec<u32> = values.collect();
        let count = values.len();
        Tensor::from_vec(values, count, device)
    }

    /// The position of each row within its item, `[rows]`, u32.
    ///
    /// # Errors
    /// Returns an error if the device is out of memory.
    pub fn places(&self, device: &Device) -> Result<Tensor> {
        Self::index(self.0.rows.iter().map(|row| row % self.0.length as u32), device)
    }

    /// The real rows of `x`: `[batch, length, …]`; returns `[rows, …]`.
    ///
    /// # Errors
    /// Returns an error if `x` has another shape.
    pub fn gather(&self, x: &Tensor) -> Result<Tensor> {
        if x.rank() < 2 || x.dims()[..2] != [self.0.batch, self.0.length] {
            bail!("{:?} is not a batch of {} by {}", x.dims(), self.0.batch, self.0.length);
        }
        let flat = x.contiguous()?.flatten(0, 1)?;
        if self.is_dense() {
            return Ok(flat);
        }
        flat.index_select(&Self::index(self.0.rows.iter().copied(), x.device())?, 0)
    }

    /// Puts ragged rows, `[rows, width]`, at their positions among zeros: `[batch, length, width]`.
    ///
    /// # Errors
    /// Returns an error if `x` has another number of rows.
    pub fn scatter(&self, x: &Tensor) -> Result<Tensor> {
        let (count, width) = x.dims2()?;
        if count != self.count() {
            bail!("{count} rows, but {} places", self.count());
        }
        let shape = (self.0.batch, self.0.length, width);
        if self.is_dense() {
            return x.reshape(shape);
        }
        let index = Self::index(self.0.rows.iter().copied(), x.device())?;
        let zeros = Tensor::zeros((self.0.batch * self.0.length, width), x.dtype(), x.device())?;
        zeros.index_add(&index, &x.contiguous()?, 0)?.reshape(shape)
    }

    /// The first row of every item of ragged `x`: `[rows, width]`; returns `[batch, width]`.
    ///
    /// # Errors
    /// Returns an error if an item does not begin with a real row, or `x` has another number of rows.
    pub fn pick_first(&self, x: &Tensor) -> Result<Tensor> {
        if x.dim(0)? != self.count() {
            bail!("{} rows, but {} places", x.dim(0)?, self.count());
        }
        let starts = &self.0.starts[..self.0.batch];
        let begins = |(item, start): (usize, &usize)| self.0.rows.get(*start) == Some(&((item * self.0.length) as u32));
        if !starts.iter().enumerate().all(begins) {
            bail!("an item of the batch does not begin with a real row");
        }
        x.index_select(&Self::index(starts.iter().map(|start| *start as u32), x.device())?, 0)
    }

    /// The value added to the scores of each key if attention is computed on padded rows, `[batch, 1, 1, length]`;
    /// `None` if nothing is padded.
    ///
    /// # Errors
    /// Returns an error if the device is out of memory.
    pub fn key_bias(&self, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        if self.is_dense() {
            return Ok(None);
        }
        let mut bias = vec![MASKED; self.0.batch * self.0.length];
        self.0.rows.iter().for_each(|row| bias[*row as usize] = 0.0);
        Tensor::from_vec(bias, (self.0.batch, 1, 1, self.0.length), device)?.to_dtype(dtype).map(Some)
    }
}
