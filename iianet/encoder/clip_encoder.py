"""The lip encoder of IIANet: the published ResNet-18."""

from typing import ClassVar

from iianet.checkpoint import ENCODER_FORM, PublishedForm
from iianet.encoder.lip_encoder import LipEncoder
from iianet.encoder.video_encoder import EMBEDDING_DIM, VideoEncoder


class ClipEncoder(LipEncoder):
    """ResNetVideoModel of JusperLee/IIANet."""

    name: ClassVar[str] = "ResNetVideoModel"
    dim: ClassVar[int] = EMBEDDING_DIM
    fewest_rows: ClassVar[int] = 1
    """Every layer pads, so even one row leaves one to take the average of."""
    published: ClassVar[str] = (
        "lrw_resnet18_mstcn_adamw_s3.pth.tar, the model resnet18_mstcn(adamw_s3) in the Model Zoo of "
        "https://github.com/mpc001/Lipreading_using_Temporal_Convolutional_Networks"
    )
    form: ClassVar[PublishedForm] = ENCODER_FORM

    @classmethod
    def make_network(cls) -> VideoEncoder:
        """See `LipEncoder`."""
        return VideoEncoder()
