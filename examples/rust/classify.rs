// Classifies a picture by a model of images of bytes with their channels last, with no crate:
//
//   classify MODEL.onnx PICTURE.ppm [--runs N] [--bits]
//
// MODEL is what bnn-deploy convert --input uint8 --layout nhwc writes, PICTURE a binary PGM or PPM file of its size,
// without comments. Prints the five likeliest classes, and the median time of N runs. --bits prints all outputs as the
// bits of their floats instead. It calls onnxruntime's C API; a program with Cargo has the crate ort for that.

use std::ffi::{c_void, CStr, CString};
use std::fmt::Display;
use std::os::raw::{c_char, c_int};
use std::ptr::{null, null_mut};
use std::time::Instant;

// What onnxruntime makes, which a program sees by pointers alone.
type Opaque = *mut c_void;

// The functions of OrtApi that are called here, at their places in its table, which only grows at its end. A status
// that is null says that all is well.
#[repr(C)]
struct OrtApi {
    slots_0: [Opaque; 2],
    get_error_message: unsafe extern "C" fn(Opaque) -> *const c_char,
    create_env: unsafe extern "C" fn(c_int, *const c_char, *mut Opaque) -> Opaque,
    slots_4: [Opaque; 3],
    create_session: unsafe extern "C" fn(Opaque, *const c_char, Opaque, *mut Opaque) -> Opaque,
    slots_8: [Opaque; 1],
    run: unsafe extern "C" fn(
        session: Opaque,
        options: Opaque,
        input_names: *const *const c_char,
        inputs: *const Opaque,
        input_count: usize,
        output_names: *const *const c_char,
        output_count: usize,
        outputs: *mut Opaque,
    ) -> Opaque,
    create_session_options: unsafe extern "C" fn(*mut Opaque) -> Opaque,
    slots_11: [Opaque; 13],
    set_intra_op_num_threads: unsafe extern "C" fn(Opaque, c_int) -> Opaque,
    slots_25: [Opaque; 11],
    session_get_input_name: unsafe extern "C" fn(Opaque, usize, Opaque, *mut *mut c_char) -> Opaque,
    session_get_output_name: unsafe extern "C" fn(Opaque, usize, Opaque, *mut *mut c_char) -> Opaque,
    slots_38: [Opaque; 11],
    create_tensor_with_data_as_ort_value: unsafe extern "C" fn(
        memory: Opaque,
        data: *mut c_void,
        bytes: usize,
        shape: *const i64,
        rank: usize,
        element: c_int,
        out: *mut Opaque,
    ) -> Opaque,
    slots_50: [Opaque; 1],
    get_tensor_mutable_data: unsafe extern "C" fn(Opaque, *mut *mut c_void) -> Opaque,
    slots_52: [Opaque; 12],
    get_tensor_shape_element_count: unsafe extern "C" fn(Opaque, *mut usize) -> Opaque,
    get_tensor_type_and_shape: unsafe extern "C" fn(Opaque, *mut Opaque) -> Opaque,
    slots_66: [Opaque; 3],
    create_cpu_memory_info: unsafe extern "C" fn(c_int, c_int, *mut Opaque) -> Opaque,
    slots_70: [Opaque; 8],
    get_allocator_with_default_options: unsafe extern "C" fn(*mut Opaque) -> Opaque,
    slots_79: [Opaque; 14],
    release_status: unsafe extern "C" fn(Opaque),
    slots_94: [Opaque; 2],
    release_value: unsafe extern "C" fn(Opaque),
    slots_97: [Opaque; 2],
    release_tensor_type_and_shape_info: unsafe extern "C" fn(Opaque),
}

#[repr(C)]
struct OrtApiBase {
    get_api: unsafe extern "C" fn(u32) -> *const OrtApi,
    get_version_string: unsafe extern "C" fn() -> *const c_char,
}

const API_VERSION: u32 = 18; // of onnxruntime 1.18: any later release has it
const ERRORS_ALONE: c_int = 3; // ORT_LOGGING_LEVEL_ERROR
const UINT8: c_int = 2; // ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8

extern "C" {
    fn OrtGetApiBase() -> *const OrtApiBase;
    // Of bnn_deploy.h.
    fn RegisterCustomOps(options: Opaque, base: *const OrtApiBase) -> Opaque;
    fn bnn_deploy_selected_isa() -> *const c_char;
}

type Result<T> = std::result::Result<T, String>;

// A session, and what its runs need; all of it lives as long as the program.
struct Model {
    api: &'static OrtApi,
    session: Opaque,
    memory: Opaque,
    input: *mut c_char,
    output: *mut c_char,
}

impl Model {
    fn new(path: &str) -> Result<Model> {
        unsafe {
            let base = OrtGetApiBase();
            let api = ((*base).get_api)(API_VERSION).as_ref();
            let api = api.ok_or_else(|| format!("onnxruntime {} is too old", text(((*base).get_version_string)())))?;
            let (mut env, mut options, mut allocator) = (null_mut(), null_mut(), null_mut());
            let (session, memory, input, output) = (null_mut(), null_mut(), null_mut(), null_mut());
            let mut model = Model { api, session, memory, input, output };
            let name = CString::new("classify").unwrap();
            let path = CString::new(path).map_err(|_| "a path has no byte 0".to_string())?;
            model.check((api.create_env)(ERRORS_ALONE, name.as_ptr(), &mut env))?;
            model.check((api.create_session_options)(&mut options))?;
            model.check((api.set_intra_op_num_threads)(options, 1))?;
            model.check(RegisterCustomOps(options, base))?;
            let mut session = null_mut();
            model.check((api.create_session)(env, path.as_ptr(), options, &mut session))?;
            model.session = session;
            model.check((api.get_allocator_with_default_options)(&mut allocator))?;
            let (mut input, mut output) = (null_mut(), null_mut());
            model.check((api.session_get_input_name)(session, 0, allocator, &mut input))?;
            model.check((api.session_get_output_name)(session, 0, allocator, &mut output))?;
            model.input = input;
            model.output = output;
            let mut memory = null_mut();
            model.check((api.create_cpu_memory_info)(1, 0, &mut memory))?;
            model.memory = memory;
            Ok(model)
        }
    }

    // The first output for one image, [height][width][channels].
    fn run(&self, bytes: &mut [u8], shape: [i64; 4]) -> Result<Vec<f32>> {
        let api = self.api;
        unsafe {
            let (mut value, mut result, mut info) = (null_mut(), null_mut(), null_mut());
            let data = bytes.as_mut_ptr() as *mut c_void;
            self.check((api.create_tensor_with_data_as_ort_value)(
                self.memory, data, bytes.len(), shape.as_ptr(), 4, UINT8, &mut value,
            ))?;
            let (names, outputs) = ([self.input as *const c_char], [self.output as *const c_char]);
            let status = (api.run)(
                self.session, null_mut(), names.as_ptr(), &value, 1, outputs.as_ptr(), 1, &mut result,
            );
            (api.release_value)(value);
            self.check(status)?;
            let (mut count, mut scores) = (0, null_mut());
            self.check((api.get_tensor_type_and_shape)(result, &mut info))?;
            self.check((api.get_tensor_shape_element_count)(info, &mut count))?;
            self.check((api.get_tensor_mutable_data)(result, &mut scores))?;
            let found = std::slice::from_raw_parts(scores as *const f32, count).to_vec();
            (api.release_tensor_type_and_shape_info)(info);
            (api.release_value)(result);
            Ok(found)
        }
    }

    unsafe fn check(&self, status: Opaque) -> Result<()> {
        if status.is_null() {
            return Ok(());
        }
        let message = text((self.api.get_error_message)(status));
        (self.api.release_status)(status);
        Err(message)
    }
}

unsafe fn text(chars: *const c_char) -> String {
    if chars == null() { String::new() } else { CStr::from_ptr(chars).to_string_lossy().into_owned() }
}

// The bytes [height][width][channels] of a picture, and its shape as a batch of one.
fn read_picture(path: &str) -> Result<(Vec<u8>, [i64; 4])> {
    let named = |error: &dyn Display| format!("{path}: {error}");
    let file = std::fs::read(path).map_err(|error| named(&error))?;
    let mut words = file.splitn(5, |byte| byte.is_ascii_whitespace()).collect::<Vec<_>>();
    let pixels = if words.len() == 5 { words.pop().unwrap() } else { &[] };
    let header: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
    let size = |i: usize| header.get(i).and_then(|word| word.parse::<u16>().ok()).unwrap_or(0) as usize;
    let channels = if header[0] == "P6" { 3 } else { 1 };
    let (width, height) = (size(1), size(2));
    if !["P5", "P6"].contains(&&*header[0]) || width == 0 || height == 0 || size(3) != 255 {
        return Err(named(&"not a binary PGM or PPM file of 8 bits without comments: convert it to one"));
    }
    let bytes = pixels.get(..width * height * channels).ok_or_else(|| named(&"ends before its last pixel"))?;
    Ok((bytes.to_vec(), [1, height as i64, width as i64, channels as i64]))
}

fn print(scores: &[f32]) {
    let most = scores.iter().cloned().fold(f32::MIN, f32::max);
    let powers: Vec<f64> = scores.iter().map(|score| f64::from(score - most).exp()).collect();
    let total: f64 = powers.iter().sum();
    let mut classes: Vec<usize> = (0..scores.len()).collect();
    classes.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    for i in classes.into_iter().take(5) {
        println!("class {i:<4} score {:9.4}   {:5.1} %", scores[i], 100.0 * powers[i] / total);
    }
}

fn classify(arguments: &[String]) -> Result<()> {
    let usage = "usage: classify MODEL.onnx PICTURE.ppm [--runs N] [--bits]";
    let (mut files, mut runs, mut bits) = (Vec::new(), 100, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--bits" => bits = true,
            "--runs" => runs = rest.next().and_then(|n| n.parse::<usize>().ok()).ok_or(usage)?.max(1),
            file => files.push(file),
        }
    }
    if files.len() != 2 {
        return Err(usage.to_string());
    }
    let model = Model::new(files[0])?;
    let (mut bytes, shape) = read_picture(files[1])?;
    let scores = model.run(&mut bytes, shape)?;
    if bits {
        scores.iter().for_each(|score| println!("{:08x}", score.to_bits()));
        return Ok(());
    }
    print(&scores);
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        model.run(&mut bytes, shape)?;
        times.push(start.elapsed());
    }
    times.sort();
    let isa = unsafe { text(bnn_deploy_selected_isa()) };
    println!("{:.3} ms, the median of {runs} runs; {isa} kernels", times[runs / 2].as_secs_f64() * 1e3);
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(message) = classify(&arguments) {
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}
