"""The table of operators: each operation once, with its traits and the words of the rules that passes apply to it.

    names                   every spelling of an operation as a bare name
    traits                  what holds for it (:class:`fxdistill.operators.Trait`)
    labels                  how channel labels pass through it          applied by ``couple``
    rewrite                 how it is corrected when widths shrink      applied by ``shrink``
    masked                  its value without the removed elements      applied by the proof of ``shrink``

What is in no line is unknown; operators with code of their own are files of :mod:`fxdistill.operators`.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from fxdistill.operators import NOTHING, Operator, Trait, collected

_P, _E, _M = Trait.POINTWISE, Trait.ELEMENTWISE, Trait.METADATA
_CARRIED, _MOVED = _P | Trait.CARRIES, Trait.VIEW | Trait.CARRIES
_ORDERED = _MOVED | Trait.KEEPS_ORDER


def _line(words: str, traits: Trait = NOTHING, labels: str = "", rewrite: str = "", masked: str = "") -> Operator:
    return Operator(tuple(words.split()), traits, labels=labels, rewrite=rewrite, masked=masked)


_LINES = (
    # each value alone
    _line("relu relu6 leaky_relu elu selu celu gelu silu swish mish hardswish hardsigmoid hardtanh sigmoid tanh "
          "softplus softsign softshrink hardshrink tanhshrink logsigmoid log_sigmoid rrelu",
          _P | Trait.ACTIVATION, "pointwise"),
    _line("exp log log2 log10 log1p expm1 sqrt rsqrt square abs absolute neg sign reciprocal sin cos tan erf erfc "
          "erfinv floor ceil round trunc frac logit bitwise_not invert nan_to_num positive", _P, "pointwise"),
    _line("logical_not isnan isinf bool", _P | Trait.BOOLEAN, "pointwise"),
    _line("float double half bfloat16 long int to type type_as _to_copy to_copy cpu cuda identity alias lift "
          "lift_fresh lift_fresh_copy", _CARRIED | Trait.VIEW, "pointwise"),
    _line("contiguous detach data", _CARRIED | _ORDERED, "pointwise"),
    _line("clone", _CARRIED | Trait.KEEPS_ORDER, "pointwise"),
    _line("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout",
          _CARRIED, "pointwise"),
    _line("stochastic_depth drop_path", _CARRIED),
    _line("fill zero zeros_like ones_like empty_like full_like",
          labels="pointwise"),
    _line("prelu", Trait.ACTIVATION, "prelu"),
    # several values that broadcast
    _line("add sub rsub mul div true_divide divide multiply subtract floor_divide maximum minimum fmax fmin where "
          "addcmul addcdiv lerp pow atan2 bitwise_and bitwise_or masked_fill fmod remainder xlogy hypot and or xor "
          "truediv floordiv mod copysign logaddexp threshold heaviside clamp clamp_min clamp_max clip",
          _E, "elementwise"),
    _line("eq ne lt gt le ge logical_and logical_or logical_xor", _E | Trait.BOOLEAN, "elementwise"),
    # the same elements in other places
    _line("view reshape _unsafe_view unsafe_view", _ORDERED | Trait.RESHAPES, "movement", "sizes"),
    _line("view_as reshape_as _reshape_alias reshape_alias", _MOVED | Trait.RESHAPES, "movement"),
    _line("flatten ravel squeeze unsqueeze atleast_2d", _ORDERED, "movement"),
    _line("unflatten", _ORDERED, "movement", "unflatten"),
    _line("permute transpose swapaxes swapdims movedim moveaxis t T mT H mH adjoint",
          _MOVED | Trait.PERMUTES, "movement"),
    _line("pixel_shuffle pixel_unshuffle", Trait.PERMUTES | Trait.REORDERS, "movement"),
    _line("roll flip", Trait.PERMUTES | Trait.REORDERS | Trait.PICKS, "movement"),
    # more or fewer of them
    _line("expand broadcast_to", Trait.VIEW, "movement", "sizes"),
    _line("expand_as unbind", Trait.VIEW, "movement"),
    _line("repeat tile repeat_interleave", labels="movement"),
    _line("index_select index fliplr flipud rot90", Trait.PICKS, "movement"),
    _line("diagonal", Trait.PICKS | Trait.VIEW, "movement"),
    _line("unfold", Trait.PICKS | Trait.VIEW, "unfold"),
    _line("real", Trait.VIEW),
    _line("select", Trait.VIEW, "movement", "select"),
    _line("narrow", Trait.VIEW | Trait.CUTS, "movement", "narrow"),
    _line("slice", Trait.VIEW | Trait.CUTS, "movement", "slice"),
    _line("getitem", Trait.VIEW | Trait.CUTS, "movement", "getitem"),
    _line("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split",
          Trait.VIEW | Trait.CUTS, "movement", "pieces"),
    _line("hsplit vsplit dsplit", Trait.VIEW | Trait.CUTS, "movement"),
    _line("cat concat concatenate", Trait.CONCATENATES, "cat"),
    _line("stack", labels="stack"),
    _line("pad constant_pad_nd", labels="pad", rewrite="pad"),
    _line("reflection_pad2d replication_pad2d", labels="pad"),
    _line("im2col", labels="patches"),
    _line("fold col2im", labels="fold"),
    _line("setitem", labels="setitem"),
    # one from many
    _line("sum", labels="reduction"),
    _line("nansum norm linalg_vector_norm vector_norm count_nonzero", Trait.STATISTIC, "reduction"),
    _line("mean std var std_mean var_mean", Trait.STATISTIC, "reduction", masked="moment"),
    _line("amax amin max min argmax argmin prod any all softmax log_softmax softmin median logsumexp cumsum cumprod "
          "sort topk argsort logcumsumexp", Trait.WEIGHS, "reduction"),
    _line("max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d interpolate upsample "
          "upsample_nearest upsample_bilinear upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
          "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa",
          Trait.POOLING, "spatial"),
    _line("max_pool1d max_pool3d avg_pool1d avg_pool3d lp_pool1d lp_pool3d adaptive_avg_pool1d adaptive_avg_pool3d "
          "adaptive_max_pool1d adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
          "max_pool3d_with_indices adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
          "adaptive_max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d "
          "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices upsample_nearest1d "
          "upsample_nearest3d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact1d "
          "_upsample_nearest_exact3d grid_sample grid_sampler grid_sampler_2d grid_sampler_3d", labels="spatial"),
    _line("max_unpool1d max_unpool2d max_unpool3d", labels="unpool"),
    # norms
    _line("layer_norm rms_norm", labels="last-dims-norm", rewrite="layer-norm", masked="norm"),
    _line("native_layer_norm", rewrite="layer-norm"),
    _line("group_norm", labels="group-norm", masked="norm"),
    _line("batch_norm", labels="channel-norm", masked="batch-norm"),
    _line("instance_norm", labels="channel-norm"),
    _line("normalize", labels="normalize"),
    _line("local_response_norm", labels="neighbours"),
    # products
    _line("linear", labels="linear"),
    _line("matmul bmm mm mv dot vdot", labels="matmul"),
    _line("rmatmul", labels="rmatmul"),
    _line("addmm baddbmm", labels="addmm"),
    _line("addbmm", labels="addbmm"),
    _line("einsum", labels="einsum"),
    _line("embedding", labels="embedding"),
    _line("conv1d conv2d conv3d", labels="convolution", rewrite="convolution"),
    _line("conv_transpose1d conv_transpose2d conv_transpose3d", labels="transposed-convolution", rewrite="convolution"),
    _line("convolution", rewrite="convolution"),
    _line("scaled_dot_product_attention", labels="attention", rewrite="attention"),
    _line("multi_head_attention_forward", Trait.FUSED, "multi-head-attention"),
    _line("multihead_attention", Trait.FUSED),
    # no data
    _line("shape size dim ndim ndimension numel nelement stride storage_offset is_contiguous is_floating_point "
          "is_complex dtype sym_size sym_numel sym_stride len layout requires_grad is_sparse is_quantized is_nested "
          "is_leaf grad_fn element_size is_same_size is_inference is_meta names get_device itemsize nbytes is_signed "
          "is_conj is_neg result_type promote_types can_cast is_distributed retains_grad data_ptr dim_order",
          _M, "metadata"),
    _line("is_cuda is_cpu is_mps is_xpu is_xla is_mkldnn is_vulkan is_ipu is_mtia is_maia is_hpu", _M, "place"),
    _line("device", _M, "device"),
    _line("getattr"),  # of a graph; what is asked for goes by its own name
    _line("zeros ones full", Trait.UNIFORM, rewrite="sizes"),
    _line("arange linspace eye"),
    _line("new_zeros new_ones new_full", Trait.UNIFORM, "new", "sizes"),
    _line("new_empty new_tensor new", labels="new"),
    _line("_assert _assert_async _assert_scalar _assert_tensor_metadata", labels="nothing"),
)  # fmt: skip

IN_PLACE_OPERATORS: frozenset[Callable[..., Any]] = frozenset((
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.setitem,
))  # fmt: skip
"""Python's operators that write into their first operand."""
_SYMBOLS = frozenset(("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"))
_UNKNOWN = Operator()


@functools.cache
def table() -> Mapping[str, Operator]:
    """All operators by bare name, those of :mod:`fxdistill.operators` and of installed distributions among them."""
    return collected(_LINES)


def operator_of(name: str) -> Operator:
    """What is known of an operation; of an unknown one nothing."""
    return table().get(name, _UNKNOWN)


def is_a(name: str, trait: Trait) -> bool:
    """Whether a trait is known to hold for an operation."""
    return trait in table().get(name, _UNKNOWN).traits


def _name_of(value: Any) -> str:
    return str(getattr(value, "__name__", value))


def bare_name(target: Callable[..., Any] | str) -> str:
    """One name for a function or method, however it is spelled: no overload, dunder or underscore of in-place forms.

    ``aten.add.Tensor``, ``Tensor.add_``, ``Tensor.__radd__``, ``operator.iadd`` and ``"add_"`` are all ``add``.
    """
    name = target if isinstance(target, str) else _name_of(getattr(target, "overloadpacket", target))
    if name == "__get__":
        name = _name_of(getattr(target, "__self__", name))
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        return name[1:] if name[:1] in ("r", "i") and name[1:] in _SYMBOLS else name
    if name[:1] == "i" and name[1:] in _SYMBOLS and target in IN_PLACE_OPERATORS:
        return name[1:]
    return name.rstrip("_") or name
