//! The one way to a frame's bytes.

use core::marker::PhantomData;

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

/// What may be read from and written to a frame in place.
///
/// # Safety
/// The type has alignment 1, no padding, and every bit pattern is a value.
pub unsafe trait Wire: Copy {}

// SAFETY: bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: bytes.
unsafe impl<const N: usize, const M: usize> Wire for [[u8; N]; M] {}
// SAFETY: a struct of byte arrays and bytes, as the assert below shows.
unsafe impl Wire for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Wire for Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Wire for UdpHdr {}

const _: () = assert!(align_of::<Ipv4Hdr>() == 1 && size_of::<Ipv4Hdr>() == 20);
const _: () = assert!(align_of::<Ipv6Hdr>() == 1 && size_of::<Ipv6Hdr>() == 40);
const _: () = assert!(align_of::<UdpHdr>() == 1 && size_of::<UdpHdr>() == 8);

/// The linear part of a frame.
pub struct Frame<'a> {
    start: usize,
    end: usize,
    bytes: PhantomData<&'a mut [u8]>,
}

impl Frame<'_> {
    /// The frame from address `start` to `end`.
    ///
    /// # Safety
    /// The bytes stay valid, and nothing else reads or writes them, while the value lives.
    #[inline(always)]
    pub const unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end, bytes: PhantomData }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is nothing.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Address of a value that lies within the frame. The comparison is the form that the kernel's verifier knows.
    #[inline(always)]
    const fn address<T: Wire>(&self, offset: usize) -> Option<usize> {
        let address = self.start + offset;
        if address + size_of::<T>() > self.end { None } else { Some(address) }
    }

    /// Reads at `offset`; `None` beyond the end.
    #[inline(always)]
    pub const fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        match self.address::<T>(offset) {
            // SAFETY: `address` checked that the value lies within the frame, `Wire` promises that any bytes at any
            // address are a value, and the lifetime is that of the borrow of the frame.
            Some(address) => Some(unsafe { &*(address as *const T) }),
            None => None,
        }
    }

    /// Writes at `offset`; `None` beyond the end.
    #[inline(always)]
    pub const fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        match self.address::<T>(offset) {
            // SAFETY: as in `at`; the exclusive borrow of the frame keeps other references away.
            Some(address) => Some(unsafe { &mut *(address as *mut T) }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beyond_the_end() {
        let mut bytes = [1u8, 2, 3, 4];
        let range = bytes.as_mut_ptr_range();
        // SAFETY: `bytes` outlives the frame and is not touched meanwhile.
        let mut frame = unsafe { Frame::new(range.start as usize, range.end as usize) };
        assert_eq!(frame.at::<[u8; 4]>(0), Some(&[1, 2, 3, 4]));
        assert_eq!(frame.at::<[u8; 2]>(2), Some(&[3, 4]));
        assert_eq!(frame.at::<[u8; 2]>(3), None);
        assert_eq!(frame.at::<[u8; 1]>(4), None);
        assert_eq!(frame.at_mut::<[u8; 5]>(0), None);
        *frame.at_mut::<[u8; 2]>(1).unwrap() = [9, 8];
        assert_eq!((frame.len(), bytes), (4, [1, 9, 8, 4]));
    }
}
