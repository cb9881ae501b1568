"""Checks that no sum of a model can overflow float32."""

from __future__ import annotations

import math

from livefactor_kernels.spec.model import (
    FLOAT16_MAX,
    RATE_STEPS_MAX,
    FactorDtype,
    ModelSpec,
    OptimizerKind,
    SpecError,
)


def require(ok: bool, name: str, expected: str, got: object) -> None:
    """Raises a SpecError that names the field, if it is not ok."""
    if not ok:
        raise SpecError(f"{name}: expected {expected}, got {got!r}")


def check_sums(spec: ModelSpec) -> None:
    """Checks that no sum of a micro-batch can overflow float32, in any order that the semantics
    allow.

    The largest score is k*c^2 + 2c + |mu|. Times the largest weight it must be finite before it is
    clamped. The largest gradient g of a row is (occurrences) * (e_max * c_max * 2 + l2 * c_max).
    The gradient and its step must be finite. If gradients are clipped, k * g**2 must be finite,
    too. Dropout multiplies scores and gradients of errors by 1 / (1 - dropout). Adversarial
    training moves a score by at most 3 * adversarial_share times the largest product of norms, and
    its errors count `adversarial_weight` times; a ratio of norms is at most 2 sqrt(k) c / 1e-15
    (`sgd/adversarial.py`). An accumulator is at most g_max (1e38), and a step adds at most 1e38, so
    their sum is finite:

        AdaGrad           G + g**2. Either G >= g**2, or g < 1e-22. In both cases
                          (lr g) / (sqrt(G) + eps) is finite.
        row-wise AdaGrad  G + |g|**2 / k over the whole row: k * g**2 < 1e38. The step is that
                          of AdaGrad, times sqrt(k).
        lazy Adam         beta2 v + (1 - beta2) g**2. v / (1 - beta2**t) is at most
                          g_max / (1 - beta2). m is a rounded mean of gradients, at most 2 g. Its
                          step is at most lr * 2 g / (1 - beta1) / eps.
        FTRL              n + g**2; z + lr g - sqrt(g_max + g**2) c, which is below
                          1e38 + 1e37 + 2e25. A new z is below
                          (beta + sqrt(g_max)) c + lr l1 < 1e26. The weight is at most g_max / beta.
    """
    limits = spec.limits
    if spec.factor_dtype == FactorDtype.FLOAT16:
        most = f"at most {FLOAT16_MAX:.0f} with float16"
        require(limits.factor_max <= FLOAT16_MAX, "limits.factor_max", most, limits.factor_max)
    occurrences = spec.micro_batch * (1 + spec.negatives_of_event)
    c, e = limits.factor_max, limits.error_max
    keep_scale = 1.0 / (1.0 - spec.regularization.dropout)
    attack, norm = spec.regularization.adversarial_weight, spec.regularization.adversarial_share
    moved = 1.0 + 4.0 * norm + 2.0 * norm * norm
    score = spec.k_padded * c * c * keep_scale * moved + 2 * c + limits.value_abs_max
    require(score * limits.weight_max * 2 < 1e37, "limits", "k * factor_max**2 * weight_max < 1e37", score)
    pulled = attack * norm * e * spec.k_padded * c * max(c, 1.0) * 4e15
    require(pulled < 1e37, "limits", "adversarial errors * k * factor_max**2 < 1e21", pulled)
    errors = e * (1.0 + attack) * (1.0 + norm * math.sqrt(spec.k_padded))
    gradient = occurrences * (2 * errors * c * keep_scale + max(spec.l2, spec.bias_l2) * c + errors)
    rate = max(1.0, spec.optimizer.learning_rate, spec.optimizer.bias_learning_rate)
    if spec.adaptive_rate.window:
        # The probe is one step ahead.
        rate *= 2.0 ** ((RATE_STEPS_MAX + 1) / 4)
    require(gradient * rate < 1e37, "limits", "events * error_max * factor_max * rate < 1e37", gradient)
    _check_accumulators(spec, gradient)


def _check_accumulators(spec: ModelSpec, gradient: float) -> None:
    """Checks the state of the optimiser as `check_sums` explains.

    `gradient` is the largest gradient of a row.
    """
    optimizer, limits, bound = spec.optimizer, spec.limits, math.sqrt(1e38)
    clips = spec.regularization.gradient_norm_max > 0
    of_row = clips or optimizer.kind == OptimizerKind.ROWWISE_ADAGRAD
    wide = math.sqrt(spec.k_padded) if of_row else 1.0
    if clips or optimizer.kind != OptimizerKind.SGD:
        expected = (
            f"events * error_max * factor_max * sqrt(k) < {bound:.3g} (lower error_max or factor_max)"
            if of_row
            else f"events * error_max * factor_max < {bound:.3g} with AdaGrad (lower error_max or factor_max)"
        )
        require(gradient * wide < bound, "limits", expected, gradient * wide)
    if optimizer.kind == OptimizerKind.LAZY_ADAM:
        mean = limits.g_max / (1.0 - optimizer.beta2)
        require(mean < 1e38, "limits.g_max", "below 1e38 * (1 - beta2) with lazy Adam", limits.g_max)
        rate = max(optimizer.learning_rate, optimizer.bias_learning_rate)
        step = 2.0 * gradient * rate / ((1.0 - optimizer.beta1) * optimizer.eps)
        require(step < 1e37, "optimizer.eps", "events * error_max * factor_max * rate / eps < 1e37", step)
    if optimizer.kind == OptimizerKind.FTRL:
        most = limits.g_max / optimizer.beta
        require(most < 1e38, "limits.g_max", "below 1e38 * beta with FTRL", limits.g_max)
