// What upfirdn2d on the CPU works out once per call: the filter as products of taps, and which outputs of a row meet the same taps.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "abi.h"
#include "fir.h"

// Outputs index + q * period of a row, for q < outputs, meet `taps` taps at columns pixel + q * advance, and on, of the padded row.
struct Phase {
    int64_t pixel, outputs;
    int taps, first_tap;  // first_tap: where they stand among the row taps of a term
};

// Taps down the columns, times taps along the rows. A filter is a sum of such terms.
template <class A>
struct Term {
    std::vector<A> column;  // fh, in the order in which the correlation meets them
    std::vector<A> row;     // those of each phase in turn
};

template <class A>
struct Plan {
    std::vector<Term<A>> terms;
    std::vector<Phase> phases;
    int64_t period, advance;        // outputs and pixels from one output of a phase to its next
    int64_t first_column, columns;  // the padded row: the image's columns from this one on, zeros where there are none
};

// The filter as [fh][fw] of the correlation, gain included; a separable one as its two factors.
template <class A>
std::vector<Term<A>> unmerged_terms(const Upfirdn2dArgs& a, const float* f) {
    const AxisGains gains = axis_gains(a);
    auto tap = [&](int64_t offset, int i, int n, float gain) { return A(f[offset + stored_tap<int>(i, n, a.flip)] * gain); };
    if (a.separable) {
        Term<A> term{std::vector<A>(a.fh), std::vector<A>(a.fw)};
        for (int i = 0; i < a.fh; i++) term.column[i] = tap(0, i, a.fh, gains.y);
        for (int j = 0; j < a.fw; j++) term.row[j] = tap(0, j, a.fw, gains.x);
        return {term};
    }
    std::vector<Term<A>> rows(a.fh);
    for (int i = 0; i < a.fh; i++) {
        rows[i].column.assign(a.fh, A(0));
        rows[i].column[i] = 1;
        for (int j = 0; j < a.fw; j++) rows[i].row.push_back(tap((int64_t)stored_tap<int>(i, a.fh, a.flip) * a.fw, j, a.fw, gains.x));
    }
    return rows;
}

// One term for rows that are multiples of one another, as those of most low-pass filters are; else the terms as they were.
template <class A>
std::vector<Term<A>> merge_proportional(const std::vector<Term<A>>& rows) {
    auto smaller = [](A a, A b) { return std::abs(a) < std::abs(b); };
    auto size = [&](const Term<A>& t) { return std::abs(*std::max_element(t.row.begin(), t.row.end(), smaller)); };
    const auto largest = std::max_element(rows.begin(), rows.end(), [&](const Term<A>& a, const Term<A>& b) { return size(a) < size(b); });
    const std::vector<A>& base = largest->row;
    const size_t pivot = std::max_element(base.begin(), base.end(), smaller) - base.begin();
    Term<A> merged{{}, base};
    for (const Term<A>& t : rows) {
        const A factor = t.row[pivot] / base[pivot];
        for (size_t j = 0; j < base.size(); j++)  // written so that a NaN is no multiple
            if (!(std::abs(factor * base[j] - t.row[j]) <= 2 * std::numeric_limits<A>::epsilon() * std::abs(t.row[j]))) return rows;
        merged.column.push_back(factor);
    }
    return {merged};
}

// The filter as few terms.
template <class A>
std::vector<Term<A>> filter_terms(const Upfirdn2dArgs& a, const float* f) {
    const auto terms = unmerged_terms<A>(a, f);
    return terms.size() > 1 ? merge_proportional(terms) : terms;
}

// Sorts the row taps of every term by phase.
template <class A>
Plan<A> make_plan(const Upfirdn2dArgs& a, const float* f) {
    Plan<A> plan;
    plan.terms = filter_terms<A>(a, f);
    const int64_t common = std::gcd(a.up_x, a.down_x), endless = std::numeric_limits<int64_t>::max() / 2;
    plan.period = a.up_x / common;
    plan.advance = a.down_x / common;
    plan.first_column = -(a.pad_x0 > 0 ? (a.pad_x0 + a.up_x - 1) / a.up_x : a.pad_x0 / a.up_x);
    plan.columns = 0;
    const int64_t pad = a.pad_x0 + plan.first_column * a.up_x;  // of the padded row; not positive
    std::vector<std::vector<A>> sorted(plan.terms.size());
    for (int64_t index = 0; index < std::min(plan.period, a.out_w); index++) {
        const Reach<int64_t> r = reach<int64_t>(index, a.up_x, a.down_x, pad, a.fw, endless);
        const int64_t outputs = (a.out_w - index + plan.period - 1) / plan.period;
        plan.phases.push_back({r.pixel, outputs, (int)r.count, (int)sorted[0].size()});
        plan.columns = std::max(plan.columns, r.pixel + (outputs - 1) * plan.advance + r.count);
        for (size_t t = 0; t < sorted.size(); t++)
            for (int64_t k = 0; k < r.count; k++) sorted[t].push_back(plan.terms[t].row[r.tap + k * a.up_x]);
    }
    for (size_t t = 0; t < sorted.size(); t++) plan.terms[t].row = sorted[t];
    return plan;
}
