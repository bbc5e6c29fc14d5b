// The input of a block-sparse convolution, as its kernels read it: tokens are output pixels, and neighbours along a row are
// neighbours in memory, for every tap.
//
//     word [in word][phase][image][row][column]          4 bytes: four u8 channels, or one float32
//
// A padded image with strides sh, sw is split into the phases (y % sh, x % sw) that taps use. Tap (i, j) of output pixel (y, x)
// then lies in one phase at row y + const, column x + const: output pixels are numbered by rows of `pitch` columns, some of which are
// no pixels, and a tap is one offset for all of them. Padding is shared: the columns right of a row are those left of the next
// one, the rows below an image those above the next.
#pragma once

#include <vector>

#include "fastcompress/w8a8.h"
#include "image.h"

namespace fastcompress {

// The planes hold what a part of the output needs: some images, or some rows of one.
struct OutputPart {
    int64_t image, images;
    int64_t row, rows;  // of each image
};

struct PlaneLayout {
    int64_t first_row;  // of the output, as are the next two
    int64_t out_h, out_w;
    int64_t pitch;       // words from one row to the next
    int64_t image_rows;  // rows from one image to the next
    int64_t rows;        // of one image, shared ones included
    int64_t words;       // of a pixel: groups of four u8 channels, or float32 channels
    std::vector<int64_t> phases_h, phases_w;

    int64_t phases() const { return static_cast<int64_t>(phases_h.size() * phases_w.size()); }
    int64_t total_rows(int64_t images) const { return (images - 1) * image_rows + rows; }
    // Words of one plane of so many images: an odd number of cache lines, so that planes do not share sets.
    int64_t plane_words(int64_t images) const;
    int64_t bytes(int64_t images) const { return 4 * words * phases() * plane_words(images); }
    // Positions from the first output pixel to behind the last one.
    int64_t positions(int64_t images) const { return ((images - 1) * image_rows + out_h - 1) * pitch + out_w; }
};

// `out_h`, `out_w`: of the whole output.
PlaneLayout plane_layout(const BlobHeader& blob, const ConvCall& call, int64_t out_h, int64_t out_w,
                         const OutputPart& part);

// Bytes from a position to what the block columns (blob.h) of its output pixel take, for planes of so many images.
std::vector<int64_t> plane_offsets(const BlobHeader& blob, const ConvCall& call, const PlaneLayout& layout,
                                   int64_t images);

// Builds the planes of a part.
class PlaneBuilder {
   public:
    PlaneBuilder(const KernelTable& table, const BlobHeader& blob, const ConvCall& call, const PlaneLayout& layout,
                 const OutputPart& part);

    // Scratch for any part.
    static int64_t scratch_bytes(const BlobHeader& blob, const ConvCall& call);
    void build(uint8_t* planes, uint8_t* scratch) const;

   private:
    // Columns of a phase that hold source pixels.
    struct Span {
        int64_t left, count;  // zeros before, pixels
        int64_t source;       // column of the first one
    };
    Span span(int64_t phase) const;
    // Row of the source in row `row` of a plane; -1: padding.
    int64_t source_row(int64_t row, int64_t phase) const;

    void build_channels_last(uint8_t* planes, uint8_t* scratch) const;
    void build_channels_first(uint8_t* planes, uint8_t* scratch) const;
    // One word of all pixels of image `image` of the part.
    void build_word(int64_t image, int64_t word, uint8_t* planes, uint8_t* scratch) const;
    // A row of a plane from four u8 channels, or one of floats, that begin `from` and lie `channel_step` bytes apart.
    void build_row(const Span& span, const uint8_t* from, int64_t channel_step, uint32_t* to) const;
    void fill(uint32_t* to, int64_t count) const;
    // Elements from `element` on, as the kernels take them; in `scratch`, or where they are.
    const uint8_t* prepared(int64_t element, int64_t count, uint8_t* scratch) const;

    const KernelTable& table_;
    const ConvCall& call_;
    const PlaneLayout& layout_;
    const OutputPart& part_;
    bool real_;
    int64_t plane_, word_step_;  // words
    int64_t source0_, source1_;  // rows of the source that the part needs
    int64_t channels_;
    float inverse_scale_;
    int32_t zero_point_;
};

}  // namespace fastcompress
