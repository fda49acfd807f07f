//! Small dense matrices: one head's map of one pair.

/// A small dense matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows × columns` values.
    pub values: Vec<f32>,
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    /// The identity matrix.
    pub fn identity(size: usize) -> Self {
        let mut out = Self::zeros(size, size);
        for i in 0..size {
            out.values[i * size + i] = 1.0;
        }
        out
    }

    /// The values of `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The mean of several rows; zeros if there are none.
    pub fn mean_of_rows(&self, rows: &[usize]) -> Vec<f32> {
        let mut out = vec![0.0; self.columns];
        for row in rows {
            for (sum, value) in out.iter_mut().zip(self.row(*row)) {
                *sum += value / rows.len() as f32;
            }
        }
        out
    }

    /// The transpose.
    pub fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.columns, self.rows);
        for r in 0..self.rows {
            for c in 0..self.columns {
                out.values[c * self.rows + r] = self.values[r * self.columns + c];
            }
        }
        out
    }

    /// The matrix product; the inner sizes must agree.
    pub(crate) fn times(&self, other: &Self) -> Self {
        debug_assert_eq!(self.columns, other.rows);
        let mut out = Self::zeros(self.rows, other.columns);
        for (row, values) in out.values.chunks_exact_mut(other.columns.max(1)).enumerate() {
            for (k, weight) in self.row(row).iter().enumerate() {
                for (sum, value) in values.iter_mut().zip(other.row(k)) {
                    *sum += weight * value;
                }
            }
        }
        out
    }

    /// The sum; the shapes must agree.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a + b).collect();
        Self { values, ..*self }
    }
}
