(* A worker in OCaml, a language without a library of its own, written by docs/writing-a-worker.md:

     poolparty -- ocaml examples/echo.ml

   The first half would be the library, the second is the echo application that `poolparty-ctl check --echo` asks. *)

(* ---- The library. *)

type request = {
  remote_address : string;
  uri : string;
  meth : string;
  headers : (string * string) list;
  body : string;
}

type response = { status : int; fields : (string * string list) list; content : string }

(* The path of a request's uri, as it was sent: percent-encoded. *)
let path request =
  let from = match String.index_from_opt request.uri 8 '/' with Some i -> i | None -> String.length request.uri in
  let rest = String.sub request.uri from (String.length request.uri - from) in
  List.hd (String.split_on_char '?' rest)

(* A header's value, whatever the case of its name. *)
let header request name =
  let lower = String.lowercase_ascii name in
  List.find_map
    (fun (each, value) -> if String.lowercase_ascii each = lower then Some value else None)
    request.headers

exception Broken of string

let answers = open_out_gen [ Open_wronly; Open_binary ] 0 "/dev/fd/3"

(* Reading. `payload` and the place in it that comes next. *)
type message = { payload : string; mutable at : int }

let read_byte message =
  if message.at >= String.length message.payload then raise (Broken "a message ends too early");
  message.at <- message.at + 1;
  Char.code message.payload.[message.at - 1]

let rec read_uint ?(shift = 0) message =
  let byte = read_byte message in
  let low = (byte land 127) lsl shift in
  if byte < 128 then low
  else if shift >= 56 then raise (Broken "a number is too large")
  else low + read_uint ~shift:(shift + 7) message

let read_string message =
  let length = read_uint message in
  if length > String.length message.payload - message.at then raise (Broken "a length points beyond its frame");
  message.at <- message.at + length;
  String.sub message.payload (message.at - length) length

let read_request message =
  let remote_address = read_string message in
  let uri = read_string message in
  let meth = read_string message in
  let rec read_headers count read =
    if count = 0 then List.rev read
    else
      let name = read_string message in
      let value = read_string message in
      read_headers (count - 1) ((name, value) :: read)
  in
  let headers = read_headers (read_uint message) [] in
  let body = read_string message in
  if message.at <> String.length message.payload then raise (Broken "bytes follow a message");
  { remote_address; uri; meth; headers; body }

(* The next frame's payload; None at the end of the input, also within a frame. *)
let read_frame () =
  match really_input_string stdin 4 with
  | exception End_of_file -> None
  | head -> (
      let size = Int32.to_int (String.get_int32_le head 0) land 0xffffffff in
      if size > 0x7fffffff then raise (Broken "a frame is over the limit");
      match really_input_string stdin size with exception End_of_file -> None | payload -> Some payload)

(* Writing. *)
let rec add_uint out number =
  if number > 127 then (
    Buffer.add_char out (Char.chr (128 + (number land 127)));
    add_uint out (number lsr 7))
  else Buffer.add_char out (Char.chr number)

let add_string out text =
  add_uint out (String.length text);
  Buffer.add_string out text

let write_frame out =
  let head = Bytes.create 4 in
  Bytes.set_int32_le head 0 (Int32.of_int (Buffer.length out));
  output_bytes answers head;
  Buffer.output_buffer answers out;
  flush answers

let write_response response =
  let out = Buffer.create (String.length response.content + 256) in
  Buffer.add_char out '\000';
  add_uint out response.status;
  add_uint out (List.length response.fields);
  List.iter
    (fun (name, values) ->
      add_string out name;
      add_uint out (List.length values);
      List.iter (add_string out) values)
    response.fields;
  add_string out response.content;
  write_frame out

let write_ready features =
  let out = Buffer.create 32 in
  Buffer.add_char out '\001';
  add_uint out (List.length features);
  List.iter (add_string out) features;
  write_frame out

let write_health_reply problem =
  let out = Buffer.create 32 in
  Buffer.add_char out '\002';
  Buffer.add_char out (if problem = None then '\001' else '\000');
  add_string out (Option.value problem ~default:"");
  write_frame out

let failed =
  {
    status = 500;
    fields = [ ("Content-Type", [ "text/plain; charset=utf-8" ]) ];
    content = "internal server error\n";
  }

(* Answer requests by `handler` until the server closes the pipe. *)
let serve ?(health_check = fun () -> ()) handler =
  set_binary_mode_in stdin true;
  Sys.set_signal Sys.sigint (Sys.Signal_handle ignore);
  Printexc.record_backtrace true;
  let offered = String.split_on_char ',' (Option.value (Sys.getenv_opt "POOLPARTY_FEATURES") ~default:"") in
  let says_ready = List.mem "ready" offered in
  let replies = says_ready && List.mem "health-reply" offered in
  if says_ready then write_ready (if replies then [ "health-reply" ] else []);
  let report request error =
    Printf.eprintf "%s %s failed: %s\n%s%!" request.meth request.uri (Printexc.to_string error)
      (Printexc.get_backtrace ())
  in
  let answer request =
    let response =
      try
        let response = handler request in
        if response.status < 200 || response.status > 599 then invalid_arg "the status is from 200 to 599";
        response
      with error ->
        report request error;
        failed
    in
    flush stdout;
    write_response response
  in
  let check () =
    match health_check () with
    | () -> if replies then write_health_reply None
    | exception error ->
        prerr_endline ("the health check failed: " ^ Printexc.to_string error);
        if replies then write_health_reply (Some (Printexc.to_string error)) else exit 1
  in
  let rec loop () =
    match read_frame () with
    | None -> ()
    | Some payload ->
        let message = { payload; at = 0 } in
        (match read_byte message with
        | 0 -> answer (read_request message)
        | 1 -> check ()
        | tag -> raise (Broken (Printf.sprintf "the unknown tag %d" tag)));
        loop ()
  in
  try loop ()
  with Broken reason ->
    prerr_endline ("a request cannot be read: " ^ reason);
    exit 1

(* ---- The application. *)

let handler request =
  match path request with
  | "/fail" -> failwith "this page always fails"
  | "/stream" -> { status = 404; fields = []; content = "" }
  | path ->
      if path = "/print" then print_string "printed\n";
      {
        status = 200;
        fields =
          [
            ("Echo-Method", [ request.meth ]);
            ("Echo-Uri", [ request.uri ]);
            ("Echo-Remote-Address", [ request.remote_address ]);
            ("Echo-Check", [ Option.value (header request "x-check") ~default:"" ]);
            ("Echo-Headers", List.map (fun (name, value) -> name ^ ": " ^ value) request.headers);
          ];
        content = request.body;
      }

let () = serve handler
