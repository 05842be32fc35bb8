"""What the Chinese page calls the reasons of complaints and warnings, and their remedies; messages stay English."""

REASONS = {  # reason: Chinese title, Chinese remedy
    "archive_member": ("压缩包成员有误", "把文件本身放进压缩包"),
    "audio": ("含有音频", "本项目不支持音频；删去该条或其音频"),
    "boxes": ("框有误", "检查坐标的个数、顺序和范围"),
    "conversations_type": ("对话不是列表", "改为轮次的列表"),
    "convert": ("需要先转换", "用 tools/prepare_data.py convert 转换"),
    "empty_answer": ("回答为空", "补上回答或删去该条；训练会跳过它"),
    "empty_system": ("系统提示为空", "删去它或写上内容"),
    "encoding": ("编码不是 UTF-8", "以 UTF-8 保存文件"),
    "encrypted": ("压缩包成员已加密", "解密后重新打包"),
    "equal_answers": ("两个回答相同", "删去该条：没有可比较的偏好"),
    "far_apart": ("两个回答的长度相差悬殊", "检查是否截断，或偏好只反映了长度"),
    "file_changed": ("标注文件在使用中被修改", "重新启动，文件会重新建立索引"),
    "file_gone": ("标注文件已不在", "使用期间请勿移动标注文件"),
    "foreign_form": ("其他训练框架的写法", "用 tools/prepare_data.py convert 转换"),
    "grounding": ("定位标签有误", "补全每个标签，坐标写成四个数"),
    "history": ("history 字段有误", "写成 [问, 答] 的列表"),
    "ignored_key": ("有不会读取的字段", "确认可以忽略，否则改用能读取的字段"),
    "image_format": ("图像格式无法读取", "安装相应插件，或另存为 JPEG 或 PNG"),
    "image_missing": ("图像不存在", "更正名字或图像目录"),
    "image_mode": ("像素格式无法读取", "另存为 8 位 RGB"),
    "image_name": ("图像名有误", "写文件名，并先下载网址指向的图像"),
    "image_outside": ("图像在目录之外", "把文件放进图像目录，或更正 image_folders"),
    "image_pixels": ("像素过多", "缩小图像"),
    "image_size": ("图像尺寸与记录不符", "确认它就是被标注的那张图像"),
    "image_unreadable": ("图像损坏", "重新获取图像，或删去该条"),
    "json": ("不是有效的 JSON", "每行一个 JSON 对象，或每个文件一个 JSON 数组"),
    "json_duplicate_key": ("同一字段出现两次", "只保留一个"),
    "media_key": ("图像或视频字段有误", "写成文件名或文件名的列表"),
    "media_name": ("图像或视频的名字有误", "写成文件名"),
    "media_role": ("图像不在用户轮次中", "把 <image> 放进用户的轮次"),
    "media_twice": ("图像写了两次", "只保留一处"),
    "no_answer": ("没有要学习的回答", "补上助手的回答"),
    "no_conversations": ("没有对话", "给出 conversations：用户与助手的轮次"),
    "no_pair": ("不是偏好对", "给出 chosen 与 rejected 两个回答"),
    "no_preference": ("没有说明偏好", "说明哪个回答更好"),
    "no_prompt": ("没有提问", "在回答之前写上提问"),
    "objects": ("objects 字段有误", "检查 ref、bbox 及其个数"),
    "pair_answer": ("偏好对的回答有误", "每个回答写成文字或一个助手轮次"),
    "plan_changed": ("图像在测量之后变了", "重新启动，长度会重新测量"),
    "record_type": ("记录不是对象", "每条写成一个 JSON 对象"),
    "rejected": ("在排除名单上", "无需处理：训练会跳过它"),
    "sample": ("样本不完整", "把记录写在图像旁边"),
    "system_place": ("系统提示不在开头", "移到开头，或换一个模板"),
    "system_twice": ("有两个系统提示", "只保留一个"),
    "system_type": ("系统提示不是文字", "写成文字"),
    "table_unreadable": ("表格损坏", "重新获取文件"),
    "too_long": ("超过 max_length", "调高 max_length，调低 max_tiles，或缩短记录"),
    "turn_content": ("轮次内容有误", "写成文字或内容块的列表"),
    "turn_keys": ("轮次字段有误", "每轮写成 from 与 value"),
    "turn_loss": ("轮次的 loss 有误", "写成 true 或 false"),
    "turn_order": ("轮次顺序有误", "用户与助手交替，以用户开始"),
    "turn_part": ("内容块有误", "写成 text、image 或 video"),
    "turn_role": ("轮次角色未知", "写成 human、gpt 或 system"),
    "turn_type": ("轮次不是对象", "每轮写成一个对象"),
    "two_formats": ("同一条记录有两种写法", "只保留一种"),
    "two_prompts": ("偏好对有两个提问", "只保留一个"),
    "unicode": ("文字不是有效的 Unicode", "修复或删去损坏的字符"),
    "video_missing": ("视频不存在", "更正名字或图像目录"),
    "video_unreadable": ("视频损坏", "重新获取视频"),
}


def in_chinese(reason: str) -> str:
    """Title of a reason; the reason itself where it has none."""
    return REASONS.get(reason, (reason, ""))[0]


def remedy_in_chinese(reason: str, remedy: str) -> str:
    """Remedy for a reason; the English one where it has none."""
    return REASONS[reason][1] if reason in REASONS else remedy
