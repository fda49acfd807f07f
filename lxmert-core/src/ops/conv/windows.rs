//! The arithmetic of sliding windows: which inputs a window covers.

use candle_core::{Result, bail};

/// One image's sliding windows: input `[channels, height, width]`, output `[_, out_height, out_width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Channels of the input.
    pub channels: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Rows and columns of a window.
    pub kernel: (usize, usize),
    /// Step from window to window along both sides.
    pub stride: usize,
    /// Rows and columns around the input.
    pub padding: usize,
    /// Windows along a column.
    pub out_height: usize,
    /// Windows along a row.
    pub out_width: usize,
}

impl Windows {
    /// The windows of an image of (channels, height, width).
    ///
    /// # Errors
    /// A stride of 0, and a kernel that is empty or larger than the padded image.
    pub fn new(
        (channels, height, width): (usize, usize, usize),
        kernel: (usize, usize),
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let (padded_height, padded_width) = (height + 2 * padding, width + 2 * padding);
        if stride == 0 || kernel.0 == 0 || kernel.1 == 0 || kernel.0 > padded_height || kernel.1 > padded_width {
            bail!(
                "no window of {} × {} with stride {stride} in an image of {height} × {width} padded by {padding}",
                kernel.0,
                kernel.1
            );
        }
        let out_height = (padded_height - kernel.0) / stride + 1;
        let out_width = (padded_width - kernel.1) / stride + 1;
        Ok(Self { channels, height, width, kernel, stride, padding, out_height, out_width })
    }

    /// Values in one input image.
    pub fn in_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Windows in one image.
    pub fn out_len(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Values in one window.
    pub fn window_len(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    /// Whether the windows equal the image, so that nothing need be gathered: each is one pixel, or one is as large as
    /// the image.
    pub fn is_identity(&self) -> bool {
        let (each_pixel, whole_image) = (self.kernel == (1, 1) && self.stride == 1, (self.height, self.width));
        self.padding == 0 && (each_pixel || self.kernel == whole_image)
    }

    /// The input row that kernel row `i` meets in output row `out_y`, unless it is in the padding.
    pub fn in_row(&self, out_y: usize, i: usize) -> Option<usize> {
        (out_y * self.stride + i).checked_sub(self.padding).filter(|&y| y < self.height)
    }

    /// The input column that kernel column `j` meets in output column `out_x`, unless it is in the padding.
    pub fn in_column(&self, out_x: usize, j: usize) -> Option<usize> {
        (out_x * self.stride + j).checked_sub(self.padding).filter(|&x| x < self.width)
    }
}
